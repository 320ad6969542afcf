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

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions (key hash, moment) sorted by both, so that searches walk forward in memory."""

    order: Ints  # (q,) place of each sorted question among the questions as asked
    keys: Ints  # distinct key hashes, rising
    key_of: Ints  # (q,) index into keys
    moments_us: Ints  # distinct moments, rising
    moment_of: Ints  # (q,) index into moments_us

    @classmethod
    def of(cls, hashes: Ints, at_us: Ints) -> Asked:
        """Sort the questions `hashes[i]` at `at_us[i]`; a hash of -1 matches no key."""
        order = np.lexsort((at_us, hashes)).astype(np.int64)
        keys, key_of = np.unique(hashes[order], return_inverse=True)
        moments, moment_of = np.unique(at_us[order], return_inverse=True)
        return cls(order, keys, key_of, moments, moment_of)


@dataclass(frozen=True, eq=False)
class Run:
    """Rows `[start, start + n)` of a track; everything is derived from the first six fields."""

    start: int
    keys: Ints  # (k,) distinct key hashes, rising
    raw_keys: pa.Table  # (k) their key columns
    times_us: Ints  # (n,) knowledge times, rising
    owners: Ints  # (n,) index into keys
    values: Mapping[str, Ints]  # (n,) for each column that is read
    codes: Ints  # (n,) sorted index

    @classmethod
    def of_rows(
        cls,
        start: int,
        hashes: Ints,
        raw_keys: pa.Table,
        times_us: Ints,
        values: Mapping[str, Ints],
    ) -> Run:
        """Build from rows in order of time, with one row of `raw_keys` for each."""
        keys, first, owners = np.unique(hashes, return_index=True, return_inverse=True)
        return cls._indexed(
            start, keys, raw_keys.take(first), times_us=times_us, owners=owners, values=values
        )

    @classmethod
    def _indexed(
        cls,
        start: int,
        keys: Ints,
        raw_keys: pa.Table,
        *,
        times_us: Ints,
        owners: Ints,
        values: Mapping[str, Ints],
    ) -> Run:
        size = len(times_us)
        codes = owners * (size + 1) + np.arange(size, dtype=np.int64)
        codes.sort()
        return cls(start, keys, raw_keys, times_us, owners, values, codes)

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
        both = np.concatenate((self.keys, later.keys))
        keys, first, rank = np.unique(both, return_index=True, return_inverse=True)
        old, new = rank[: len(self.keys)], rank[len(self.keys) :]
        return self._indexed(
            self.start,
            keys,
            pa.concat_tables([self.raw_keys, later.raw_keys]).take(first).combine_chunks(),
            times_us=np.concatenate((self.times_us, later.times_us)),
            owners=np.concatenate((old[self.owners], new[later.owners])),
            values={n: np.concatenate((v, later.values[n])) for n, v in self.values.items()},
        )

    def without_before(self, cutoff_us: int) -> Run:
        """Leave out rows older than `cutoff_us`, and keys that have no row left."""
        gone = int(np.searchsorted(self.times_us, cutoff_us))
        kept, owners = np.unique(self.owners[gone:], return_inverse=True)
        return self._indexed(
            self.start + gone,
            self.keys[kept],
            self.raw_keys.take(kept),
            times_us=self.times_us[gone:].copy(),
            owners=owners,
            values={name: column[gone:].copy() for name, column in self.values.items()},
        )

    def keys_between(self, from_us: int, to_us: int) -> Ints:
        """Distinct indices into `keys` of rows with a time in `[from_us, to_us)`."""
        low, high = np.searchsorted(self.times_us, (from_us, to_us))
        return np.unique(self.owners[low:high])

    def find(self, asked: Asked) -> Found | None:
        """The questions whose key has rows here; None when there are none."""
        rank = np.searchsorted(self.keys, asked.keys)
        known = np.append(self.keys, np.int64(-2))[rank] == asked.keys
        rows = np.flatnonzero(known[asked.key_of])
        if not rows.size:
            return None
        return Found(self, asked, rows, rank[asked.key_of[rows]] * (len(self) + 1))


@dataclass(frozen=True, eq=False)
class Found:
    """Those of the questions whose key a run holds: `rows` in the order of `asked`."""

    run: Run
    asked: Asked
    rows: Ints  # (f,) rising
    base: Ints  # (f,) code before the key's first row
    _known: dict[int, Ints] = field(default_factory=dict, init=False)

    def before(self, shift_us: int) -> Ints:
        """(f,) places after the key's rows that came before the moment less `shift_us`."""
        if shift_us not in self._known:
            earlier = np.searchsorted(self.run.times_us, self.asked.moments_us - shift_us)
            codes = self.base + earlier[self.asked.moment_of[self.rows]]
            places = np.searchsorted(self.run.codes, codes).astype(np.int64, copy=False)
            self._known[shift_us] = places
        return self._known[shift_us]
