"""What a stack with a resident learner left behind: when each label was known, and learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace import records
from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.line import LineStore, Version
from headrace.log.files import FileLog
from headrace.quarantine import Quarantine
from headrace.report.freshness import NEVER, first_responses, first_to_answer
from headrace.sample import head_tick, read_tick
from headrace.settings import Settings

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """What the processes left: when each label could be known, and when a model answered with it.

    known_us: (samples,) append of the click, or of the silent impression and its declared wait.
    answered_us: (samples,) first answer of a version that learned the sample, `NEVER` if none did.
    clicked: (samples,) whether a click made the sample.
    """

    known_us: Ints
    answered_us: Ints
    clicked: NDArray[np.bool_]
    steps: list[records.Cycle]
    quarantined: list[dict[str, Any]]
    tick_us: Ints
    versions: dict[str, Version]

    @classmethod
    def read(cls, settings: Settings, spec: LineSpec) -> Found:
        """Read logs, ticks, versions and the learner's journal."""
        home = settings.line_home(spec.line)
        log = FileLog(home / "log" / "events", event_schema(spec))
        arrival = log.read(0, log.head)["arrival_at"].cast("int64").to_numpy()
        served = FileLog(home / "log" / "served", served_schema(spec))
        store = LineStore(settings.line_store_url(spec.line), spec.line)
        versions = {version.version: version for version in store.versions()}
        ticks = [read_tick(home, tick) for tick in range(head_tick(home))]
        responses = first_responses(served.read(0, served.head))
        learned = first_to_answer(versions, responses, len(ticks))
        known, answered, clicked = [], [], []
        wait_us = spec.label.provisional_after or 0
        for manifest in ticks:
            if manifest.samples is None:
                continue
            rows = pq.read_table(home / manifest.samples, partitioning=None)
            engaged, shown = (
                rows[name].to_numpy() for name in ("engagement_offset", "impression_offset")
            )
            by_click = engaged >= 0
            silent_us = arrival[shown] + wait_us
            known.append(np.where(by_click, arrival[np.maximum(engaged, 0)], silent_us))
            clicked.append(by_click)
            answered.append(np.full(rows.num_rows, learned.response_us[manifest.tick]))
        return cls(
            np.concatenate(known),
            np.concatenate(answered),
            np.concatenate(clicked),
            [step for step in records.records(settings, spec) if step.kind == "learner"],
            Quarantine(home).intervals(),
            np.array([manifest.at_us for manifest in ticks]),
            versions,
        )

    def touched(self, poison_us: int | None) -> float:
        """Share of the clicks appended 2 to 8 s after poison began that a served model learned."""
        if poison_us is None:
            return 0.0
        known = self.known_us - poison_us
        spoiled = self.clicked & (known >= 2_000_000) & (known < 8_000_000)
        return float((self.answered_us[spoiled] != NEVER).mean())

    def recovered_s(self, over_us: int) -> float:
        """Seconds until a step was promoted that learned what came after this moment."""
        fresh = (
            step.ended_us
            for step in self.steps
            if step.outcome == "promoted"
            and step.interval is not None
            and self.tick_us[step.interval[0]] >= over_us
        )
        return (min(fresh, default=NEVER) - over_us) / 1e6
