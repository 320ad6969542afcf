"""What plays the traffic of a drill: a campaign that is simulated, or a recording.

Both send their events through `Passage`: the loop's own intake, label join, window kernel and
request features make samples of them. Truth (what really happened) is kept beside what the log was
told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.baseline import Vitals
from headrace.declaration import LineSpec
from headrace.drill.poison import Columns, Event, Poison, Shown
from headrace.events import IMPRESSION, TIME, event_schema, served_schema
from headrace.ingest.intake import Intake, Malformed
from headrace.labels.state import Emitted, LabelState
from headrace.requests import transform
from headrace.windows import WindowState

Score = Callable[[pa.Table], NDArray[np.float64]]
Truth = tuple[NDArray[np.bool_], NDArray[np.float64]]


@dataclass
class Seen:
    """What a stretch of time brought: samples, vitals, and the truth about what was shown."""

    samples: pa.Table
    vitals: Vitals
    truth: list[Truth] = field(default_factory=list)

    @property
    def happened(self) -> NDArray[np.int8]:
        """What really followed, (shown,)."""
        return np.concatenate([happened for happened, _ in self.truth]).astype(np.int8)

    @property
    def scores(self) -> NDArray[np.float64]:
        """What had been answered for the same impressions."""
        return np.concatenate([score for _, score in self.truth])


class Stage(Protocol):
    """Traffic of one line; `play` goes on from where it stands.

    `ranks`: whether the scores decide what is shown, so that a click rate tells their worth.
    """

    spec: LineSpec
    ranks: bool

    @property
    def day(self) -> str:
        """The recorded day on which it stands, empty where time is made up."""

    def lasts(self, seconds: int) -> bool:
        """Whether there is traffic for so many seconds more."""

    def copy(self) -> Self:
        """The same traffic at the same moment, to be played otherwise."""

    def play(self, seconds: int, score: Score | None, version: str, poison: Poison = ...) -> Seen:
        """Traffic of so many seconds, answered with `score` (None: by nobody) as `version`."""


class Passage:
    """The path of a drill's events to samples; time is what the stage says it is."""

    def __init__(self, spec: LineSpec, start_us: int) -> None:
        self.spec = spec
        self.windows, self.labels = WindowState(spec), LabelState(spec)
        self._intake = Intake(spec)
        self._offset = 0
        self._due: list[tuple[int, Event]] = []  # arrival, event
        self._last_us = start_us

    def vectors(
        self, columns: Columns, asked_us: NDArray[np.int64], read_us: NDArray[np.int64]
    ) -> pa.Table:
        """Declared columns, window values of the moments `read_us` and request features, (n,)."""
        fields = {f.name: f.type for f in event_schema(self.spec)}
        table = pa.table(
            {n: pa.array(columns[n], fields[n], from_pandas=True) for n in self.spec.columns}
        )
        values = self.windows.values(table, read_us)
        asked = table.append_column("request_at", pa.array(asked_us))
        for name in values.column_names:
            asked = asked.append_column(name, values[name])
        inputs = transform(self.spec, asked)
        for name in inputs.column_names:
            asked = asked.append_column(name, inputs[name])
        return asked

    def served(
        self, shown: Shown, vectors: pa.Table, scores: NDArray[np.float64], version: str
    ) -> pa.Table:
        """What a server would have logged (`served_schema`)."""
        count = len(shown.ids)
        at = pa.array(shown.at_us).cast(TIME)
        given: dict[str, Any] = {name: vectors[name] for name in vectors.column_names}
        given |= {
            "impression_id": pa.array(shown.ids, pa.string()),
            "request_id": pa.array([name.split(":")[0] for name in shown.ids], pa.string()),
            "served_at": at,
            "version": pa.repeat(version, count),
            "score": pa.array(scores),
            "arm": pa.nulls(count, pa.string()),
            "propensity": pa.nulls(count, pa.float64()),
            "fallback": pa.nulls(count, pa.string()),
            **{f"{view}__at": pa.nulls(count, TIME) for view in self.spec.views},
        }
        schema = served_schema(self.spec)
        return pa.table([given[item.name] for item in schema], schema=schema)

    def send(self, events: Iterable[tuple[int, Event]]) -> int:
        """Put events (arrival in us, event) on their way; returns how many were refused."""
        refused = 0
        for due_us, event in events:
            try:
                row = self._intake.row(event, due_us)
            except Malformed:
                refused += 1
            else:
                self._due.append((due_us, row))
        return refused

    def arrived(self, end_us: int) -> pa.Table:
        """Take in what arrives before `end_us`, in order, and return it with its offsets."""
        self._due.sort(key=lambda each: each[0])
        rows = []
        while self._due and self._due[0][0] < end_us:
            due_us, row = self._due.pop(0)
            self._last_us = max(self._last_us + 1, due_us)
            rows.append(row | {"arrival_at": self._last_us})
        table = pa.Table.from_pylist(rows, schema=event_schema(self.spec))
        offsets = np.arange(self._offset, self._offset + len(rows), dtype=np.int64)
        self._offset += len(rows)
        batch = table.append_column("offset", pa.array(offsets))
        self.windows.append(self.labels.resolve(batch))
        return batch

    def emitted(self, served: pa.Table, at_us: int) -> Emitted:
        """The samples and fates that are due at `at_us`."""
        found = self.labels.emit(served, at_us)
        self.windows.expire(at_us)
        return found


@dataclass
class Tally:
    """What the steps of a stretch brought so far."""

    samples: list[pa.Table] = field(default_factory=list)
    truth: list[Truth] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    events: int = 0
    engagements: int = 0

    def take(self, batch: pa.Table, emitted: Emitted) -> None:
        """Count a step's events and keep its samples."""
        self.samples.append(emitted.samples)
        self.fates.update(emitted.fates["fate"].to_pylist())
        self.events += batch.num_rows
        self.engagements += sum(name != IMPRESSION for name in batch["event"].to_pylist())

    def seen(self, seconds: int) -> Seen:
        """All of it."""
        vitals = Vitals(
            float(seconds), self.events, self.engagements, self.refused, dict(self.fates)
        )
        return Seen(pa.concat_tables(self.samples).combine_chunks(), vitals, self.truth)
