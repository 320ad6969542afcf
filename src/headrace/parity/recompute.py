"""The log's side of parity: window values afresh from the event log, and when ticks were."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import event_schema
from headrace.labels.state import LabelState
from headrace.log.files import FileLog
from headrace.parity.causes import Ints
from headrace.sample import TickManifest, head_tick, read_tick
from headrace.windows import WindowState

_HORIZONS: Final = 3
"""How far before the first event that counts reading begins, in horizons of the label join: one
for an engagement's impression, one for an engagement that came before it, one for an earlier
record of the same impression."""


class TickTimes:
    """Times of the ticks that were committed around some moments."""

    def __init__(self, home: Path, from_us: int, to_us: int) -> None:
        """Read the manifests of ticks in `[from_us, to_us]` and of the newest one before."""
        self._home = home
        head = head_tick(home)
        self._first = max(_ticks_until(home, from_us, head) - 1, 0)
        until = _ticks_until(home, to_us, head)
        self.manifests = [read_tick(home, number) for number in range(self._first, until)]
        self._at_us = np.array([0, *(m.at_us for m in self.manifests)], dtype=np.int64)

    def newest(self, until_us: Ints) -> Ints:
        """Time of the newest tick at or before each moment, 0 where there was none."""
        return self._at_us[np.searchsorted(self._at_us, until_us, side="right") - 1]

    def older(self, at_us: Ints) -> list[TickManifest]:
        """The ticks before those, that were committed at exactly one of these times, in order."""
        found = []
        for time_us in np.unique(at_us).tolist():
            number = bisect_left(
                range(self._first), time_us, key=lambda tick: read_tick(self._home, tick).at_us
            )
            if number < self._first and (tick := read_tick(self._home, number)).at_us == time_us:
                found.append(tick)
        return found


def _ticks_until(home: Path, at_us: int, head: int) -> int:
    return bisect_right(range(head), at_us, key=lambda number: read_tick(home, number).at_us)


class LogWindows:
    """Window values at moments in `[from_us, to_us]`, from as much of the event log as they need.

    What reading begins with is at least the longest window and three horizons of the label join
    older than `from_us`, so the values are those of the whole log, unless one impression was
    recorded again and again for longer, or with an `event_at` that far ahead. Ticks only say
    where in the log that is; no state of theirs is used. Memory: those events, and one view's
    windows over them at a time.
    """

    def __init__(self, spec: LineSpec, resolved: pa.Table) -> None:
        self._spec = spec
        self._resolved = resolved

    @classmethod
    def read(cls, spec: LineSpec, home: Path, from_us: int, to_us: int) -> Self:
        """Raises `IntegrityError` where the ticks do not fit the log."""
        log = FileLog(home / "log" / "events", event_schema(spec))
        labels = LabelState(spec)
        reach_us = spec.longest_window_us + _HORIZONS * labels.horizon_us
        start, stop = offsets_between(home, log, from_us - reach_us, to_us)
        events = log.read(start, stop)
        offsets = pa.array(np.arange(start, start + events.num_rows, dtype=np.int64))
        return cls(spec, labels.resolve(events.append_column("offset", offsets)))

    def values(self, view: str, keys: pa.Table, at_us: Ints) -> pa.Table:
        """One int64 column for each window feature of the view, row for row."""
        state = WindowState(self._spec, views=[view])
        state.append(self._resolved)
        return state.values(keys, at_us, view)


def offsets_between(home: Path, log: FileLog, from_us: int, to_us: int) -> tuple[int, int]:
    """Offsets `[start, stop)` that hold every record with `from_us <= arrival_at < to_us`.

    The ticks' times tell where to look, the log's own stamps are checked at both ends.
    """
    head, head_offset = head_tick(home), log.head
    before = _ticks_until(home, from_us, head)
    start = read_tick(home, before - 1).events[1] if before else 0
    after = bisect_left(range(head), to_us, key=lambda number: read_tick(home, number).at_us)
    stop = read_tick(home, after).events[1] if after < head else head_offset
    if start and _arrival_us(log, start - 1) >= from_us:
        raise _unfit(home, start - 1)
    if stop < head_offset and _arrival_us(log, stop) < to_us:
        raise _unfit(home, stop)
    return start, max(start, stop)


def _arrival_us(log: FileLog, offset: int) -> int:
    record = log.read(offset, offset + 1)
    return int(pc.max(record["arrival_at"].cast(pa.int64())).as_py())


def _unfit(home: Path, offset: int) -> IntegrityError:
    return IntegrityError(
        f"{home / 'ticks'}: the times of the ticks do not fit the event log at offset {offset}; "
        "restore the folders of ticks and log together"
    )
