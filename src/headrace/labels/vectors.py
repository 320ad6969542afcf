"""Served vectors on hold, until an impression claims them or none can any more.

Pure. A vector is known by its offset in the served log; the first of an id wins for one horizon.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import PINNED_ARM, of_defaults, served_schema
from headrace.labels.attribution import as_strings, as_us
from headrace.labels.shelf import Int64s, Shelf

_AT_ONCE: Final = 65_536


class ReadServed(Protocol):
    """Reads records `[start, stop)` of the served log."""

    def __call__(self, start: int, stop: int) -> pa.Table: ...


class Shelved(NamedTuple):
    """New vectors on the shelf: impression ids, offsets, and when they were served (us)."""

    ids: list[str]
    offsets: Int64s
    served_at: Int64s


class Vectors:
    """The shelf of served vectors; `head` counts the records of the served log seen so far."""

    def __init__(self, spec: LineSpec, horizon_us: int) -> None:
        self.shelf = Shelf(served_schema(spec), {"served_at": np.int64, "defaults": np.bool_})
        self.head = 0
        self._horizon_us = horizon_us

    def add(self, served: pa.Table, at_us: int) -> Shelved:
        """Shelve new served rows (served schema, in log order); the last tick was at `at_us`.

        Answers of a version that the request asked for are passed over: nobody was to see them.
        """
        times = as_us(served, "served_at")
        offsets = np.arange(self.head, self.head + times.size, dtype=np.int64)
        self.head += times.size
        ids, shelf, index = as_strings(served, "impression_id"), self.shelf, self.shelf.index
        earlier = shelf.find(ids)
        old = np.flatnonzero(earlier >= 0)
        until = shelf["served_at"][shelf.places(earlier[old])] + self._horizon_us
        blocked = np.zeros(times.size, dtype=np.bool_)
        blocked[old] = (until > at_us) & (until > times[old])
        pinned = pc.fill_null(pc.equal(served["arm"], PINNED_ARM), False).to_pylist()
        fresh: list[int] = []
        taken: dict[str, int] = {}
        for place, (name, offset) in enumerate(zip(ids, offsets.tolist(), strict=True)):
            repeated = name in taken and times[place] < taken[name] + self._horizon_us
            if not pinned[place] and not repeated and (name in taken or not blocked[place]):
                index[name] = offset
                taken[name] = int(times[place])
                fresh.append(place)
        kept = np.asarray(fresh, dtype=np.int64)
        rows = served if kept.size == times.size else served.take(pa.array(kept))
        shelf.add(rows, offsets[kept], {"served_at": times[kept], "defaults": of_defaults(rows)})
        names = ids if kept.size == times.size else [ids[place] for place in fresh]
        return Shelved(names, offsets[kept], times[kept])

    def rows(self, offsets: Int64s) -> pa.Table:
        """The vectors of these offsets, in this order."""
        return self.shelf.take(self.shelf.places(offsets))

    def hold_defaults(self, offsets: Int64s) -> NDArray[np.bool_]:
        """Which of these hold defaults in place of features."""
        found: NDArray[np.bool_] = self.shelf["defaults"][self.shelf.places(offsets)]
        return found

    def mostly_expired(self, at_us: int) -> bool:
        """Whether more than half are too old to be claimed.

        Vectors are large in number (all candidates), so they go in strokes, not each tick.
        """
        alive = self.shelf["alive"]
        expired = alive & (self.shelf["served_at"] + self._horizon_us <= at_us)
        return bool(2 * np.count_nonzero(expired) > np.count_nonzero(alive))

    def keep(self, at_us: int, claimed: Int64s) -> None:
        """Drop all but the young ones and those of `claimed` (offsets)."""
        self.shelf.drop(np.flatnonzero(self.shelf["alive"] & ~self._wanted(at_us, claimed)))

    def wanted(self, at_us: int, claimed: Int64s) -> Int64s:
        """Offsets of what `keep` would leave, rising."""
        found: Int64s = self.shelf["offset"][self._wanted(at_us, claimed)]
        return found

    def _wanted(self, at_us: int, claimed: Int64s) -> NDArray[np.bool_]:
        young = self.shelf["served_at"] + self._horizon_us > at_us
        kept: NDArray[np.bool_] = self.shelf["alive"] & (
            young | np.isin(self.shelf["offset"], claimed)
        )
        return kept

    def read_again(self, wanted: Int64s, served: ReadServed) -> None:
        """Put these records of the served log (rising offsets) back on the shelf.

        A stretch of the log at a time: what a conversion may repeat lies far back and apart.
        """
        while wanted.size:
            start = int(wanted[0])
            near, wanted = np.split(wanted, [np.searchsorted(wanted, start + _AT_ONCE)])
            vectors = served(start, int(near[-1]) + 1).take(pa.array(near - start))
            fields = {"served_at": as_us(vectors, "served_at"), "defaults": of_defaults(vectors)}
            self.shelf.add(vectors, near, fields)
            names = as_strings(vectors, "impression_id")
            self.shelf.index.update(zip(names, near.tolist(), strict=True))
