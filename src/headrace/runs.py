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
        by_time = None if _rises(at_us) else np.argsort(at_us, kind="stable")
        moments, moment_of = _distinct(at_us if by_time is None else at_us[by_time])
        order = np.argsort(hashes if by_time is None else hashes[by_time], kind="stable")
        moment_of = moment_of[order]
        if by_time is not None:
            order = by_time[order]
        keys, key_of = _distinct(hashes[order])
        return cls(order.astype(np.int64, copy=False), keys, key_of, moments, moment_of)


def _rises(values: Ints) -> bool:
    return not bool((values[1:] < values[:-1]).any())


def _distinct(rising: Ints) -> tuple[Ints, Ints]:
    """Distinct values and the index of each row among them, without a second sort."""
    new = np.ones(len(rising), dtype=np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=new[1:])
    return rising[new], np.cumsum(new, dtype=np.int64) - 1


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
        order = np.argsort(hashes, kind="stable")
        keys, owners_by_key = _distinct(hashes[order])
        codes = owners_by_key * (len(hashes) + 1) + order
        first = order[np.flatnonzero(np.diff(owners_by_key, prepend=-1))]
        owners = np.empty_like(owners_by_key)
        owners[order] = owners_by_key
        return cls(
            start,
            keys,
            raw_keys.take(first),
            times_us=times_us,
            owners=owners,
            values=values,
            codes=codes,
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
        both = np.concatenate((self.keys, later.keys))
        keys, first, rank = np.unique(both, return_index=True, return_inverse=True)
        old, new = rank[: len(self.keys)], rank[len(self.keys) :]
        return Run(
            self.start,
            keys,
            pa.concat_tables([self.raw_keys, later.raw_keys]).take(first).combine_chunks(),
            times_us=np.concatenate((self.times_us, later.times_us)),
            owners=np.concatenate((old[self.owners], new[later.owners])),
            values={n: np.concatenate((v, later.values[n])) for n, v in self.values.items()},
            codes=self._codes_with(later, old, new),
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
        return self.codes + np.repeat(moved, np.diff(self._starts))

    @cached_property
    def _starts(self) -> Ints:
        """(k + 1,) place in `codes` of each key's first row."""
        starts = np.zeros(len(self.keys) + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.owners, minlength=len(self.keys)), out=starts[1:])
        return starts

    def without_before(self, cutoff_us: int) -> Run:
        """Leave out rows older than `cutoff_us`, and keys that have no row left."""
        gone = int(np.searchsorted(self.times_us, cutoff_us))
        kept, owners = np.unique(self.owners[gone:], return_inverse=True)
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
        )

    def keys_between(self, from_us: int, to_us: int) -> Ints:
        """Distinct indices into `keys` of rows with a time in `[from_us, to_us)`."""
        low, high = np.searchsorted(self.times_us, (from_us, to_us))
        return np.unique(self.owners[low:high])

    def find(self, asked: Asked) -> Found | None:
        """The questions whose key has rows here; None when there are none."""
        rank = np.searchsorted(self.keys, asked.keys)
        known = self.keys[np.minimum(rank, len(self.keys) - 1)] == asked.keys
        rows = np.flatnonzero(known[asked.key_of])
        if not rows.size:
            return None
        return Found(self, asked, rows, rank[asked.key_of[rows]] * (len(self) + 1))

    def place(self, base: Ints, moments_us: Ints, moment: Ints) -> Ints:
        """Places after the rows before `moments_us[moment]` of the keys whose codes begin at
        `base`.
        """
        # Most runs lie before all moments or after all of a window's: no search is needed then.
        if self.times_us[-1] < moments_us[0]:
            return self._starts[base // (len(self) + 1) + 1]
        if moments_us[-1] <= self.times_us[0]:
            return self._starts[base // (len(self) + 1)]
        earlier = np.searchsorted(self.times_us, moments_us)
        return np.searchsorted(self.codes, base + earlier[moment]).astype(np.int64, copy=False)


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
            moments_us = self.asked.moments_us - shift_us
            self._known[shift_us] = self.run.place(
                self.base, moments_us, self.asked.moment_of[self.rows]
            )
        return self._known[shift_us]
