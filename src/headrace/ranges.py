"""Questions about many ranges `[begin[i], end[i])` of one array, all answered at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def extremes(best: np.ufunc, values: Ints, begin: Ints, end: Ints, empty: int) -> Ints:
    """`best` (np.minimum or np.maximum) of each range, `empty` over nothing.

    A sparse table, one level at a time: level l holds the best of every 2^l neighbours, and two
    of them cover a range of 2^l to 2^(l+1) - 1 values. O(n log(longest range) + ranges).
    """
    found = np.full(len(begin), empty, dtype=np.int64)
    level_of = np.frexp((end - begin).astype(np.float64))[1] - 1
    top = int(level_of.max(initial=-1))
    for level in range(top + 1):
        width = 1 << level
        rows = np.flatnonzero(level_of == level)
        found[rows] = best(values[begin[rows]], values[end[rows] - width])
        if level < top:
            values = best(values[:-width], values[width:])
    return found


def distinct(owners: Ints, values: Ints, begin: Ints, end: Ints) -> Ints:
    """Number of different values in each range, inside its owner's stretch (`owners` rises).

    A value counts at its first place in the range: where the same value of the same owner stood
    last before the range, or never. Ranges from the start of a stretch need a prefix sum alone,
    all others together O((n + ranges) log n).
    """
    order = np.argsort(values, kind="stable")  # equal values stay in order, so by owner
    one, other = order[:-1], order[1:]
    again = (values[one] == values[other]) & (owners[one] == owners[other])
    previous = np.zeros(len(values), dtype=np.int64)  # place + 1 of the one before, 0 for none
    previous[other[again]] = one[again] + 1
    firsts = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(previous == 0, out=firsts[1:])
    found = firsts[end] - firsts[begin]
    starts = np.append(np.diff(owners, prepend=-1) != 0, True)
    inner = np.flatnonzero(~starts[begin])
    if inner.size:
        begin, end = begin[inner], end[inner]
        found[inner] = count_below(previous, begin, end, begin + 1)
    return found


def count_below(values: Ints, begin: Ints, end: Ints, limit: Ints) -> Ints:
    """How many of each range's values (all >= 0) lie below its `limit`.

    Walks the levels of a wavelet matrix (Claude, Navarro and Ordonez 2015) from the highest bit
    down: each level sorts the values by one bit, stably, and moves every range along.
    """
    bits = max(int(values.max(initial=0)), int(limit.max(initial=0))).bit_length()
    found = np.zeros(len(begin), dtype=np.int64)
    zeros = np.zeros(len(values) + 1, dtype=np.int64)  # how many zeros stand before each place
    for bit in reversed(range(bits)):
        is_one = (values >> bit & 1).astype(np.bool_)
        np.cumsum(~is_one, out=zeros[1:])
        low, high = zeros[begin], zeros[end]
        limit_one = (limit >> bit & 1).astype(np.bool_)
        found += np.where(limit_one, high - low, 0)
        begin = np.where(limit_one, zeros[-1] + begin - low, low)
        end = np.where(limit_one, zeros[-1] + end - high, high)
        values = np.concatenate((values[~is_one], values[is_one]))
    return found
