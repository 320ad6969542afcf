"""Rows to score that lie in a line's logs: impressions as they arrived, or requests as served.

An impression is asked about at its own time or, where its clock was ahead, at its arrival, as in a
backfill. History answers for that moment once the impression is in a committed tick: later ticks
write rows of later times only. A served row says which feature rows the server read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.events import IMPRESSION, TIME, event_schema, served_schema
from headrace.log.files import FileLog
from headrace.log.stamp import offset_at
from headrace.sample import head_tick, read_tick
from headrace.scoring.intake import Refused

Of = Literal["impressions", "served"]
AT: Final = "request_at"
_READ_ROWS: Final = 1 << 16
_POLL_S: Final = 0.25


@dataclass(frozen=True)
class LogRows:
    """One of the logs of a line, as rows to score with their `offset`."""

    log: FileLog
    ready: Callable[[], int]
    """The offset up to which history answers for the rows."""
    select: Callable[[pa.Table], pa.Table]
    """Of records with their offsets: the rows to score, with the moment of each in `AT`."""

    @classmethod
    def of(cls, spec: LineSpec, home: Path, which: Of) -> LogRows:
        """The log of that name."""
        if which == "served":
            log = FileLog(home / "log" / "served", served_schema(spec))
            return cls(log, lambda: log.head, lambda records: _served(spec, records))
        log = FileLog(home / "log" / "events", event_schema(spec))
        return cls(log, lambda: in_ticks(home), lambda records: _impressions(spec, records))

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows of the records `[start, stop)`."""
        records = self.log.read(start, stop)
        offsets = pa.array(np.arange(start, start + records.num_rows))
        return self.select(records.add_column(0, "offset", offsets))


class Interval:
    """The impressions of a log with a stamp in `[from, to)` (us), as rows for a batch."""

    def __init__(
        self, spec: LineSpec, home: Path, interval: tuple[int, int], wait_s: float = 0.0
    ) -> None:
        """Waits up to `wait_s` for the ticks that hold the interval's last events.

        Raises `InputError` for an empty interval, `EnvironmentFault` where ticks lag behind.
        """
        from_us, to_us = interval
        if from_us >= to_us:
            raise InputError("the interval ends before it begins; give a later --to")
        self._rows = LogRows.of(spec, home, "impressions")
        self._start, self._stop = (offset_at(self._rows.log, at) for at in interval)
        deadline = time.monotonic() + wait_s
        while in_ticks(home) < self._stop and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if in_ticks(home) < self._stop:
            raise EnvironmentFault(
                f"{home}: ticks hold the events up to offset {in_ticks(home)}, the interval ends "
                f"at {self._stop}; let `headrace ingest` catch up, then score again"
            )
        self.path = home / "log" / "events"
        self.schema = self._rows.read(0, 0).schema
        self.total, self.done = self._stop - self._start, 0
        self.torn: list[Refused] = []

    def tables(self) -> Iterator[pa.Table]:
        """The rows, some at a time."""
        for start in range(self._start, self._stop, _READ_ROWS):
            stop = min(start + _READ_ROWS, self._stop)
            self.done = stop - self._start
            yield self._rows.read(start, stop)


def in_ticks(home: Path) -> int:
    """The offset up to which the event log is in committed ticks."""
    ticks = head_tick(home)
    return read_tick(home, ticks - 1).events[1] if ticks else 0


def _impressions(spec: LineSpec, records: pa.Table) -> pa.Table:
    shown = records.filter(pc.equal(records["event"], IMPRESSION))
    times = (shown[name].cast(pa.int64()) for name in ("event_at", "arrival_at"))
    moment = pc.min_element_wise(*times).cast(TIME)
    own = ["offset", "impression_id", "request_id"]
    return shown.select([*own, *spec.columns]).add_column(3, AT, moment)


def _served(spec: LineSpec, records: pa.Table) -> pa.Table:
    own = ["offset", "impression_id", "request_id"]
    read_at = [f"{view}__at" for view in spec.views]
    rows = records.select([*own, "served_at", *spec.columns, *read_at])
    return rows.rename_columns([AT if name == "served_at" else name for name in rows.column_names])
