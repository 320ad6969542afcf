"""Questions about keys at moments, sorted once for all runs that are asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.order import places, rises, stable_order, stretches

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Moments:
    """When the questions are asked; the same for all views."""

    rising_us: Ints  # (q,)
    by_time: Ints | None  # (q,) the questions in order of time, None if they came so
    distinct_us: Ints  # rising
    moment_of: Ints  # (q,) index into distinct_us, in order of time
    _earlier: dict[tuple[int, int], tuple[Ints, Ints]] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, at_us: Ints) -> Moments:
        """Sort `at_us`, one moment for each question."""
        by_time = None if rises(at_us) else stable_order(at_us)
        rising = at_us if by_time is None else at_us[by_time]
        first, moment_of = stretches(rising)
        return cls(rising, by_time, rising[first], moment_of)

    @property
    def first_us(self) -> int:
        """The first moment; there must be one."""
        return int(self.distinct_us[0])

    @property
    def last_us(self) -> int:
        """The last moment."""
        return int(self.distinct_us[-1])

    def earlier(self, times_us: Ints, shift_us: int) -> Ints:
        """How many of `times_us`, which rise, lie before each distinct moment less `shift_us`.

        Runs that came in one append share their array of times, and so the answer.
        """
        mine = (id(times_us), shift_us)
        if mine not in self._earlier:
            moments_us = self.distinct_us - shift_us
            low, high = np.searchsorted(times_us, moments_us[[0, -1]])
            found = low + places(times_us[low:high], moments_us)
            self._earlier[mine] = (times_us, found)  # the array lives on, so its id stays its own
        return self._earlier[mine][1]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions (key hash, moment) sorted by both, so that searches walk forward in memory."""

    order: Ints  # (q,) place of each sorted question among the questions as asked
    keys: Ints  # distinct key hashes, rising
    key_of: Ints  # (q,) index into keys
    moment_of: Ints  # (q,) index into moments.distinct_us
    moments: Moments
    about: object = None  # the run of which each question is a row, at its own moment

    @classmethod
    def of(cls, hashes: Ints, moments: Moments) -> Asked:
        """Sort the questions about `hashes[i]`; a hash of -1 matches no key."""
        by_time = moments.by_time
        in_time = hashes if by_time is None else hashes[by_time]
        order = stable_order(in_time)
        by_key = in_time[order]
        first, key_of = stretches(by_key)
        moment_of = moments.moment_of[order]
        if by_time is not None:
            order = by_time[order]
        return cls(order, by_key[first], key_of, moment_of, moments)
