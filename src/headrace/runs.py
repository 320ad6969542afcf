"""Immutable sorted runs of events with prefix sums, the storage of the window kernel.

A run keeps its rows in order of knowledge time (their *arrival index* is their place) and one
sorted index over `key rank * (n + 1) + arrival index`. Rows of a key before a moment `q` are
those whose code is below `rank * (n + 1) + (number of rows with time < q)`, so one
`searchsorted` on codes answers them, ties in time included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.order import common, places, running, stable_order, stretches, union
from headrace.questions import Asked, Moments

Ints = NDArray[np.int64]
_MANY: Final = 4  # rows of a key, from which most places need a search


@dataclass(frozen=True, eq=False)
class Run:
    """Rows `[start, start + n)` of a track, and their keys."""

    start: int
    keys: Ints  # (k,) distinct key hashes, rising
    raw_keys: pa.Table  # (k) their key columns
    times_us: Ints  # (n,) knowledge times, rising
    owners: Ints  # (n,) index into keys
    values: Mapping[str, Ints]  # (n,) for each column that is read
    codes: Ints  # (n,) sorted index
    starts: Ints  # (k + 1,) place in codes of each key's first row

    @classmethod
    def of_rows(
        cls,
        start: int,
        hashes: Ints,
        raw_keys: pa.Table,
        *,
        rows: Ints,
        times_us: Ints,
        values: Mapping[str, Ints],
    ) -> Run:
        """Build from rows in order of time; `rows` tells where in `raw_keys` each one's key is."""
        order = stable_order(hashes)
        by_key = hashes[order]
        first, owners_by_key = stretches(by_key)
        owners = np.empty_like(owners_by_key)
        owners[order] = owners_by_key
        return cls(
            start,
            by_key[first],
            raw_keys.take(rows[order[first]]),
            times_us=times_us,
            owners=owners,
            values=values,
            codes=owners_by_key * (len(hashes) + 1) + order,
            starts=np.append(first, len(hashes)),
        )

    @cached_property
    def sums(self) -> Mapping[str, Ints]:
        """Prefix sums (n + 1,) of each column in the order of codes."""
        by_key = self.rows_at(slice(None))
        sums = {}
        for name, column in self.values.items():
            sums[name] = np.zeros(len(self) + 1, dtype=np.int64)
            np.cumsum(column[by_key], out=sums[name][1:])
        return sums

    def rows_at(self, places: Ints | slice) -> Ints:
        """Arrival indices of the rows at these places of the sorted index."""
        return np.asarray(self.codes[places] % (len(self) + 1))

    def __len__(self) -> int:
        return len(self.times_us)

    @property
    def stop(self) -> int:
        """Sequence number after the last row."""
        return self.start + len(self)

    def followed_by(self, later: Run) -> Run:
        """Merge with the run whose rows come next."""
        keys, old, new = union(self.keys, later.keys)
        raw_rows = np.empty(len(keys), dtype=np.int64)
        raw_rows[new] = np.arange(len(self.keys), len(self.keys) + len(later.keys))
        raw_rows[old] = np.arange(len(self.keys))
        counts = np.zeros(len(keys), dtype=np.int64)
        counts[old] = np.diff(self.starts)
        counts[new] += np.diff(later.starts)
        return Run(
            self.start,
            keys,
            pa.concat_tables([self.raw_keys, later.raw_keys]).combine_chunks().take(raw_rows),
            times_us=np.concatenate((self.times_us, later.times_us)),
            owners=np.concatenate((old[self.owners], new[later.owners])),
            values={n: np.concatenate((v, later.values[n])) for n, v in self.values.items()},
            codes=self._codes_with(later, old, new),
            starts=_ends(counts),
        )

    def _codes_with(self, later: Run, old: Ints, new: Ints) -> Ints:
        """Codes of both runs together, given the new ranks of their keys: two runs to merge."""
        width = len(self) + len(later) + 1
        codes = np.concatenate(
            (self._recoded(old, width, 0), later._recoded(new, width, len(self)))
        )
        codes.sort(kind="stable")  # merges rising stretches, does not start over
        return codes

    def _recoded(self, ranks: Ints, width: int, shift: int) -> Ints:
        """The sorted codes under rising `ranks` of the keys, for a run of `width - 1` rows."""
        # code = owner * (n + 1) + row, so only the owner's share of it changes, and the place
        moved = ranks * width - np.arange(len(ranks), dtype=np.int64) * (len(self) + 1) + shift
        return self.codes + np.repeat(moved, np.diff(self.starts))

    def without_before(self, cutoff_us: int) -> Run:
        """Leave out rows older than `cutoff_us`, and keys that have no row left."""
        gone = int(np.searchsorted(self.times_us, cutoff_us))
        counts = np.bincount(self.owners[gone:], minlength=len(self.keys))
        kept = np.flatnonzero(counts)
        owners = (running(counts > 0) - 1)[self.owners[gone:]]
        size = len(owners)
        codes = owners * (size + 1) + np.arange(size, dtype=np.int64)
        codes.sort()
        return Run(
            self.start + gone,
            self.keys[kept],
            self.raw_keys.take(kept),
            times_us=self.times_us[gone:].copy(),
            owners=owners,
            values={name: column[gone:].copy() for name, column in self.values.items()},
            codes=codes,
            starts=_ends(counts[kept]),
        )

    def keys_between(self, from_us: int, to_us: int) -> Ints:
        """Indices into `keys` of rows with a time in `[from_us, to_us)`."""
        low, high = self.times_us.searchsorted((from_us, to_us))
        return self.owners[low:high]

    def asked_by(self, hashes: Ints, moments: Moments) -> Asked | None:
        """The questions `hashes[i]`, if they are just the run's rows, each at its own moment.

        So a log is asked that is replayed: then the questions are in order already.
        """
        if moments.by_time is not None or not np.array_equal(moments.rising_us, self.times_us):
            return None
        if not np.array_equal(self.keys.take(self.owners), hashes):
            return None
        order = self.rows_at(slice(None))
        key_of, moment_of = self.owners.take(order), moments.moment_of.take(order)
        return Asked(order, self.keys, key_of, moment_of, moments, about=self)

    def find(self, asked: Asked, longest_us: int) -> Found | None:
        """The asked keys that have rows here; None when no window up to `longest_us` has any."""
        moments, times_us = asked.moments, self.times_us
        if times_us[-1] < moments.first_us - longest_us or moments.last_us <= times_us[0]:
            return None
        if asked.about is self:
            every = np.arange(len(self.keys), dtype=np.int64)
            return Found(self, asked, every, every)
        keys, ranks = common(asked.keys, self.keys)
        return Found(self, asked, keys, ranks) if keys.size else None

    def place(self, ranks: Ints, earlier: Ints | int) -> Ints:
        """Places in `codes` after the first `earlier` rows of the run, of those of each key."""
        if isinstance(earlier, int) and not 0 < earlier < len(self):
            return self.starts[ranks + 1 if earlier else ranks]
        code = ranks * (len(self) + 1) + earlier
        if len(self) > _MANY * len(self.keys):
            return places(self.codes, code)
        some = self.codes.take(self.starts.take(ranks)) < code
        every = self.codes.take(self.starts.take(ranks + 1) - 1) < code
        found = self.starts.take(ranks + every)
        part = np.flatnonzero(some ^ every)  # only these need a search
        found[part] = places(self.codes, code.take(part))
        return found


@dataclass(frozen=True, eq=False)
class Found:
    """The questions whose key has rows in a run."""

    run: Run
    asked: Asked
    keys: Ints  # (k,) indices into asked.keys, rising
    ranks: Ints  # (k,) the same keys in run.keys
    _alike: dict[int, int | None] = field(default_factory=dict, init=False)
    _before: dict[int, Ints] = field(default_factory=dict, init=False)

    @cached_property
    def rows(self) -> Ints:
        """(f,) the questions in the order of `asked`, rising."""
        known = np.zeros(len(self.asked.keys), dtype=np.bool_)
        known[self.keys] = True
        return np.flatnonzero(known[self.asked.key_of])

    @cached_property
    def _whole(self) -> bool:
        return len(self.keys) == len(self.asked.keys)

    def of(self, column: Ints) -> Ints:
        """(f,) what a column (q,) in the order of `asked` holds for the questions."""
        return column if self._whole else column[self.rows]

    def add(self, totals: Ints, amounts: Ints) -> None:
        """Add the amounts (f,) to the questions' totals (q,)."""
        if self._whole:
            totals += amounts
        else:
            totals[self.rows] += amounts

    @cached_property
    def _rank_of(self) -> Ints:
        if self._whole:
            return self.ranks[self.asked.key_of]
        rank = np.empty(len(self.asked.keys), dtype=np.int64)
        rank[self.keys] = self.ranks
        return rank[self.asked.key_of[self.rows]]

    def alike(self, shift_us: int) -> int | None:
        """How many rows of the run lie before a moment less `shift_us`; None where that differs.

        It does not for most runs: they end before all moments, or begin within all windows.
        """
        if shift_us not in self._alike:
            moments, times_us = self.asked.moments, self.run.times_us
            low = int(times_us.searchsorted(moments.first_us - shift_us))
            high = int(times_us.searchsorted(moments.last_us - shift_us))
            self._alike[shift_us] = low if low == high else None
        return self._alike[shift_us]

    def before(self, shift_us: int) -> Ints:
        """(f,) places after the key's rows that came before the moment less `shift_us`."""
        if shift_us not in self._before:
            self._before[shift_us] = self._find_before(shift_us)
        return self._before[shift_us]

    def _find_before(self, shift_us: int) -> Ints:
        if self.asked.about is self.run and shift_us == 0:
            return self._own_places()
        earlier: Ints | int | None = self.alike(shift_us)
        if earlier is None:
            by_moment = self.asked.moments.earlier(self.run.times_us, shift_us)
            earlier = by_moment.take(self.of(self.asked.moment_of))
        return self.run.place(self._rank_of, earlier)

    def _own_places(self) -> Ints:
        """Each row's own place, or that of the first of its key in the same microsecond."""
        asked = self.asked
        if len(asked.moments.distinct_us) == len(asked.order):
            return np.arange(len(asked.order), dtype=np.int64)
        first, stretch = stretches(asked.key_of * len(asked.order) + asked.moment_of)
        return first.take(stretch)


def _ends(counts: Ints) -> Ints:
    """(k + 1,) where stretches of these lengths begin, and the end."""
    ends = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends
