"""Which offsets of the two logs the next tick reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.log.files import FileLog

TICK_EVENTS: Final = 100_000  # what one tick reads at most, so that its memory is bounded


class ReadableLog(Protocol):
    """A log as a tick reads it: a `FileLog`, or the writer that knows its own appends."""

    @property
    def head(self) -> int: ...

    def read(self, start: int, stop: int) -> pa.Table: ...


@dataclass(frozen=True)
class Logs:
    """The two logs of a line."""

    events: ReadableLog
    served: ReadableLog

    @classmethod
    def open(cls, spec: LineSpec, home: Path) -> Self:
        """Both logs for reading, from their files."""
        return cls(
            FileLog(home / "log" / "events", event_schema(spec)),
            FileLog(home / "log" / "served", served_schema(spec)),
        )


@dataclass(frozen=True)
class Plan:
    """The offsets `[from, to)` that a tick reads, and its time."""

    tick: int
    at_us: int
    events: tuple[int, int]
    served: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """The plan as it is stored."""
        events, served = list(self.events), list(self.served)
        return {"tick": self.tick, "at_us": self.at_us, "events": events, "served": served}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The stored plan as a value."""
        events, served = body["events"], body["served"]
        return cls(body["tick"], body["at_us"], (events[0], events[1]), (served[0], served[1]))


def last_append(log: ReadableLog, start: int, most: int) -> int:
    """The offset after the last append of the event log that ends within `most` records.

    A single append is never cut, however long, because its records arrived at one moment.
    """
    head, stop = log.head, start + most
    if stop >= head:
        return head
    ends = _ends(log.read(start, stop + 1))
    if ends.size:
        return start + int(ends[-1])
    while stop < head:
        stop = min(stop + most, head)
        ends = _ends(log.read(start, min(stop + 1, head)))
        if ends.size:
            return start + int(ends[0])
    return head


def _ends(events: pa.Table) -> NDArray[np.int64]:
    """Places after the last record of each append but the last."""
    stamps = events["arrival_at"].to_numpy()
    return np.flatnonzero(stamps[1:] != stamps[:-1]) + 1


def last_vector(log: ReadableLog, start: int, at_us: int, most: int) -> int:
    """The offset after `most` records of the served log, or after all served before `at_us`.

    What was served later may wait for its tick. A vector that came long after its impression
    could find it closed.
    """
    head, stop = log.head, start + most
    while stop < head:
        waiting = log.read(stop, min(stop + most, head))["served_at"].cast("int64")
        if pc.min(waiting).as_py() > at_us:
            break
        stop += most
    return min(stop, head)
