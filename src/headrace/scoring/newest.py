"""Feature rows at moments near the head of a line, from memory: what a follower of the log asks.

History grows for ever and a follower looks every few seconds, so what a look costs must not follow
history's length. The parts of each tick are taken in once. Of what is older than a floor, the
newest row of each key stays, and of keys that were silent for longer than the longest window not
even that: a tick writes every key whose windows moved, so all windows of such a row are empty, as
those of a key without a row are. For moments at the floor or later this gives what Feast's
point-in-time join gives, bit for bit (docs/adr/0074).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import parts, requests
from headrace.asof import BLOCK_ROWS, AsOfJoin, Moments
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import TIME
from headrace.feature_rows import part_schema
from headrace.sample import read_tick, tick_as_of, tick_of

SLACK_US: Final = 600_000_000
"""So far the floor stays behind: an impression's own time may be older than its arrival."""
_TICKS: Final = 512
"""Ticks that are taken in at a time."""
_FEW: Final = 8
_SPARE_ROWS: Final = 1 << 17


class Newest:
    """The feature rows of a line's newest ticks.

    Memory: for each view the rows of `SLACK_US` and one for each key with an event within the
    longest window, and up to about as many again before what is not needed is dropped.
    """

    def __init__(self, spec: LineSpec, home: Path, *, spare_rows: int = _SPARE_ROWS) -> None:
        self._spec, self._home = spec, home
        self._views = {view: _View(spec, view, spare_rows) for view in spec.views}
        self._next: int | None = None
        self.floor_us = 0
        """Moments from this one on (int64 us) are answered; it rises."""

    def take_in(self, start: int, stop: int) -> None:
        """Take in the ticks up to those of the events at offsets `[start, stop)`, which are asked
        about next. Raises `IntegrityError` where a part of a tick cannot be read.
        """
        first = tick_of(self._home, start)
        since_us = read_tick(self._home, first - 1).at_us if first else 0  # they came later
        if self._next is None:
            self._next = self._begin(since_us)
        until = tick_of(self._home, stop - 1) + 1
        while self._next < until:
            beyond = min(self._next + _TICKS, until)
            self._absorb(self._next, beyond)
            self._next = beyond
            self._forget(since_us - SLACK_US)

    def inputs(self, asked: pa.Table) -> pa.Table:
        """Model inputs (`events.input_fields`) of rows with the line's columns and `request_at`
        (int64 us), none of which lies before the floor.
        """
        moments = Moments.of(asked["request_at"].cast(TIME))
        for view in self._views.values():
            for name, column in view.found(asked, moments).items():
                asked = asked.append_column(name, column)
        return requests.transform(self._spec, asked)

    def _begin(self, since_us: int) -> int:
        """The first tick of which anything can count at the floor that fits `since_us`."""
        before = tick_as_of(self._home, since_us - SLACK_US)
        if not before:
            return 0
        self.floor_us = read_tick(self._home, before - 1).at_us
        return tick_as_of(self._home, self.floor_us - self._spec.longest_window_us)

    def _absorb(self, start: int, stop: int) -> None:
        """Take in ticks `[start, stop)`, all views or none."""
        told = [read_tick(self._home, tick) for tick in range(start, min(stop, start + _FEW + 1))]
        new = {}
        for name, view in self._views.items():
            folder = self._home / "features" / name
            try:
                # to list a folder of years takes longer than a few manifests, and less than many
                if len(told) <= _FEW:
                    paths = [
                        self._home / each.features[name] for each in told if name in each.features
                    ]
                    new[name] = [parts.read(path, schema=view.schema) for path in paths]
                else:
                    there = parts.between(folder, start, stop)
                    paths = [parts.own_path(folder, tick) for tick in there]
                    new[name] = [parts.read_all(paths, view.schema)]
            except (pa.ArrowInvalid, OSError) as problem:
                raise IntegrityError(
                    f"{folder}: a part is not readable ({problem}); restore it"
                ) from problem
        for name, rows in new.items():
            self._views[name].add(rows)

    def _forget(self, until_us: int) -> None:
        """Raise the floor to the newest tick up to a moment, once something can be dropped."""
        if not any(view.full for view in self._views.values()):
            return
        self.floor_us = max(self.floor_us, *(v.newest(until_us) for v in self._views.values()))
        for view in self._views.values():
            view.forget(self.floor_us, self.floor_us - self._spec.longest_window_us)


class _View:
    """The rows of one view, in the order of their ticks."""

    def __init__(self, spec: LineSpec, view: str, spare_rows: int) -> None:
        self._features, self._ttl_us, self._spare = spec.views[view], spec.feature_ttl, spare_rows
        self._keys, self._at = list(self._features[0].key), f"{view}__at"
        self.schema = part_schema(spec, view)
        self._rows = self.schema.empty_table()
        self._needed = 0

    @property
    def full(self) -> bool:
        return int(self._rows.num_rows) > 2 * self._needed + self._spare

    def add(self, later: list[pa.Table]) -> None:
        """Take in rows that were written later."""
        self._rows = pa.concat_tables([self._rows, *later])

    def found(self, asked: pa.Table, moments: Moments) -> dict[str, pa.ChunkedArray]:
        """Window features of each asked row: those of its key's newest row, or their `empty`."""
        join = AsOfJoin(moments, [asked[name] for name in self._keys], self._ttl_us)
        names = [feature.name for feature in self._features]
        for at in range(0, self._rows.num_rows, BLOCK_ROWS):
            block = self._rows.slice(at, BLOCK_ROWS)
            keys = [block[name] for name in self._keys]
            join.absorb(keys, block["event_timestamp"], None, block.select(names))
        found = join.found(pa.schema([self.schema.field(name) for name in names]))
        return {
            feature.name: pc.fill_null(found[feature.name], feature.empty)
            for feature in self._features
        }

    def newest(self, until_us: int) -> int:
        """Time of the newest row up to a moment (int64 us), 0 where there is none."""
        times = self._rows[self._at].to_numpy()
        place = int(np.searchsorted(times, until_us, side="right"))
        return int(times[place - 1]) if place else 0

    def forget(self, floor_us: int, silent_us: int) -> None:
        """Of the rows up to a floor, keep the newest of each key, and that if after `silent_us`."""
        rows = self._rows.combine_chunks()
        times = rows[self._at].to_numpy()
        place = int(np.searchsorted(times, floor_us, side="right"))
        old = rows.slice(0, place).append_column("row", pa.array(np.arange(place)))
        last = old.group_by(self._keys).aggregate([("row", "max")])["row_max"].to_numpy()
        kept = np.sort(last[times[last] > silent_us])
        self._rows = pa.concat_tables([rows.take(pa.array(kept)), rows.slice(place)])
        self._needed = self._rows.num_rows
