"""One request: read features, score, hand the served rows to the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import CHAMPION_ARM, PINNED_ARM, TIME, input_fields, served_schema
from headrace.serving.answer import Answers
from headrace.serving.arms import Arms, Drawn
from headrace.serving.served import ServedWriter

NOBODY = "none"
"""`Scored.fallback` where nobody had to stand in."""


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True)
class Scored:
    """Scores (n,) float64 in the order of the candidates, and which model gave them.

    `scores` are probabilities of a click; `tasks`, of a line with conversions, those of a
    `conversion` given a click and of `click_and_conversion`. `arm`: `champion` or a challenger of
    the line's race, or `pinned` where the request asked for a version, which nobody learns from.
    `propensity`: the probability with which that arm was drawn. `fallback`: `none`, or who stood
    in, as in the served log; `version` is `prior` and the watermark may be unknown (None) then.
    """

    request_id: str
    version: str
    watermark_us: int | None
    staleness_s: float | None
    impression_ids: list[str]
    scores: NDArray[np.float64]
    tasks: dict[str, NDArray[np.float64]]
    arm: str = CHAMPION_ARM
    propensity: float = 1.0
    fallback: str = NOBODY


class Scorer:
    """Scores candidates of one line with the arm that is drawn and logs every served vector."""

    def __init__(
        self,
        spec: LineSpec,
        answers: Answers,
        served: ServedWriter,
        *,
        arms: Arms,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._spec = spec
        self._answers = answers
        self._served = served
        self._clock_us = clock_us
        self._arms = arms
        self._inputs = [field.name for field in input_fields(spec)]
        self._schema = served_schema(spec)

    def score(self, request_id: str, candidates: pa.Table, pin: str | None = None) -> Scored:
        """Score candidates: a table of the line's declared columns, null where missing.

        The line's race draws the arm that answers; without one it is the champion. `pin` names a
        version that answers in its place, and its rows are marked. The clock is read once:
        `request_at` of the features, `served_at` of the log and the staleness are the same moment.
        Where features or model are missing, others stand in as the line declares. Raises
        `EnvironmentFault` when nobody can, or the served log has no room; `InputError` for an
        unknown `pin`.
        """
        now_us = self._clock_us()
        features, missing = self._answers.read(_at(candidates, now_us), pin)
        inputs = features.select(self._inputs)
        drawn = Drawn(PINNED_ARM, 1.0, None) if pin else self._arms.draw(request_id, candidates)
        answer = self._answers.give(drawn, pin, inputs, missing)
        watermark_us, tasks = answer.watermark_us, dict(answer.tasks)
        scored = Scored(
            request_id=request_id,
            version=answer.version,
            watermark_us=watermark_us,
            staleness_s=None if watermark_us is None else (now_us - watermark_us) / 1e6,
            impression_ids=[f"{request_id}:{i}" for i in range(candidates.num_rows)],
            scores=tasks.pop("click"),
            tasks=tasks,
            arm=drawn.arm,
            propensity=drawn.propensity,
        )
        if answer.stand_ins:
            scored = replace(scored, fallback=",".join(answer.stand_ins))
        self._served.put(self._served_rows(scored, candidates, features, now_us))
        if not pin and missing is None:
            self._arms.shadow(request_id, now_us, inputs)
        return scored

    def _served_rows(
        self, scored: Scored, candidates: pa.Table, features: pa.Table, now_us: int
    ) -> pa.Table:
        size = candidates.num_rows
        given = {
            "impression_id": pa.array(scored.impression_ids, pa.string()),
            "request_id": pa.repeat(scored.request_id, size),
            "served_at": pa.repeat(pa.scalar(now_us, TIME), size),
            "version": pa.repeat(scored.version, size),
            "score": pa.array(scored.scores, pa.float64()),
            **{f"{task}_score": pa.array(values) for task, values in scored.tasks.items()},
            "arm": pa.repeat(scored.arm, size),
            "propensity": pa.repeat(scored.propensity, size),
            "fallback": pa.nulls(size, pa.string())
            if scored.fallback == NOBODY
            else pa.repeat(scored.fallback, size),
        }
        for table in (candidates, features):
            given.update(zip(table.column_names, table.columns, strict=True))
        return pa.table([given[name] for name in self._schema.names], schema=self._schema)


def _at(candidates: pa.Table, now_us: int) -> pa.Table:
    moments = pa.repeat(pa.scalar(now_us, pa.int64()), candidates.num_rows)
    return candidates.append_column("request_at", moments)
