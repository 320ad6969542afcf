"""`GET /v1/status`: where the line and this server stand, for people and for the page at `/`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from headrace.declaration import LineSpec
from headrace.serving.answer import Answers
from headrace.serving.arms import Arms
from headrace.serving.chronicle import Lookout
from headrace.serving.features import Features
from headrace.serving.loaded import Loaded
from headrace.serving.metrics import ServingMetrics
from headrace.serving.served import ServedWriter
from headrace.serving.swap import Follower


class Standing(BaseModel):
    """The version that serves. `watermark_us`: arrival of the newest event that it learned."""

    version: str
    generation: int
    watermark_us: int
    since_us: int
    action: str
    reason: str
    previous: str | None


class Latency(BaseModel):
    """Answered requests of the last `seconds`; times in ms from arrival to answer."""

    seconds: float
    requests: int
    per_second: float
    p50_ms: float | None
    p99_ms: float | None


class ServedLog(BaseModel):
    """Rows of the served log since the start; `waiting_rows` were answered and not written yet."""

    policy: str
    written_rows: int
    waiting_rows: int
    shed_rows: int
    fault: str | None


class OnlineFeatures(BaseModel):
    """Feature rows since the start: `read` from the online store, or `from_memory`, where
    `in_memory` are held now, as new as the store's (docs/adr/0076). `newest_us`: knowledge time of
    the newest row that the store was seen to hold.
    """

    newest_us: int | None
    read: int
    from_memory: int
    in_memory: int


class Fallback(BaseModel):
    """Who stands in, in that order, where features or model are missing (docs/adr/0033).

    `answers` since the start and `recent`, of the last minute, by who stood in. `missing`: why
    features cannot be read now; `outages`: how often that began.
    """

    order: list[str]
    answers: dict[str, int]
    recent: dict[str, int]
    outages: int
    missing: str | None


class LineStory(BaseModel):
    """What the line's store told at `read_at_us`; `problem` says why not since.

    `versions` and `moves` of the champion are the newest, newest first. `race` has the newest
    look that `headrace race run` took, with intervals that hold at every look.
    """

    read_at_us: int | None
    problem: str | None
    versions: list[dict[str, Any]] = []
    moves: list[dict[str, Any]] = []
    quarantine: dict[str, Any] = {}
    race: dict[str, Any] | None = None


class Status(BaseModel):
    """Where the line and this server stand; times are microseconds since 1970, UTC.

    `label`: the engagement that is predicted. `cadence_s`: how often a new version is tried.
    `requests`: scoring requests since `started_at_us` by outcome.
    """

    line: str
    description: str
    label: str
    cadence_s: float
    now_us: int
    started_at_us: int
    champion: Standing | None
    problem: str | None
    requests: dict[str, int]
    latency: Latency
    served_log: ServedLog
    features: OnlineFeatures
    race: dict[str, Any] | None
    delivery: dict[str, Any]
    fallback: Fallback
    story: LineStory


class Overview:
    """Gathers the status: counters of this process, and what the store told last."""

    def __init__(
        self,
        spec: LineSpec,
        models: Follower,
        served: ServedWriter,
        arms: Arms,
        *,
        answers: Answers,
        features: Features,
        metrics: ServingMetrics,
        lookout: Lookout,
    ) -> None:
        self._spec = spec
        self._models, self._served, self._arms = models, served, arms
        self._answers, self._metrics, self._lookout = answers, metrics, lookout
        self._features = features
        self._started_us = _now_us()

    async def status(self) -> Status:
        """The status at this moment; it waits half a second at most, and for no request."""
        seen = await self._lookout.seen()
        story = LineStory(read_at_us=seen.read_at_us, problem=seen.problem, **(seen.found or {}))
        loaded = self._models.current() if self._models.ready else None
        served, cadence = self._served, self._spec.cadence
        return Status(
            line=self._spec.line,
            description=self._spec.description,
            label=self._spec.label.engagement,
            cadence_s=(cadence.learn or cadence.incremental) / 1e6,
            now_us=_now_us(),
            started_at_us=self._started_us,
            champion=None if loaded is None else _standing(loaded),
            problem=self._models.fault or served.fault,
            requests=self._metrics.counts(),
            latency=Latency(**asdict(self._metrics.recent())),
            served_log=ServedLog(
                policy=self._spec.serving.log_policy,
                written_rows=served.written_rows,
                waiting_rows=served.waiting_rows,
                shed_rows=served.shed_rows,
                fault=served.fault,
            ),
            features=OnlineFeatures(**asdict(self._features.seen())),
            race=self._arms.about(),
            delivery=self._models.delivery(),
            fallback=Fallback(**self._answers.about()),
            story=story,
        )


def _standing(loaded: Loaded) -> Standing:
    champion = loaded.champion
    return Standing(
        version=loaded.version.version,
        generation=champion.generation,
        watermark_us=loaded.version.watermark_us,
        since_us=champion.at_us,
        action=champion.action,
        reason=champion.reason,
        previous=champion.previous,
    )


def _now_us() -> int:
    return time.time_ns() // 1_000
