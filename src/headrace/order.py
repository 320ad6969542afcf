"""Order among 64-bit integers: stable sorts, stretches of equal values, sorted sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def stable_order(values: Ints) -> Ints:
    """What `np.argsort(values, kind="stable")` gives, in a fraction of its time for hashes.

    Each place takes the seat of the lowest bits of its value: `np.sort`, which NumPy vectorises
    for integers and not for indices, then orders by leading bits and place. Values that differ in
    the lost bits alone are few where values are spread, and sorted again.
    """
    lost = max(len(values) - 1, 0).bit_length()
    packed = (values >> lost << lost) | np.arange(len(values), dtype=np.int64)
    packed.sort()
    order = packed & ((1 << lost) - 1)
    ordered = values[order]
    wrong = ordered[1:] < ordered[:-1]
    if wrong.any():
        lead = ordered >> lost
        torn = lead[1:][wrong]
        again = torn[np.minimum(np.searchsorted(torn, lead), len(torn) - 1)] == lead
        rows = order[again]
        order[again] = rows[np.argsort(values[rows], kind="stable")]
    return order


def rises(values: Ints) -> bool:
    """Whether no value is less than the one before."""
    return not bool((values[1:] < values[:-1]).any())


def stretches(rising: Ints) -> tuple[Ints, Ints]:
    """First place of each distinct value, and the index of each place's value among them."""
    new = np.ones(len(rising), dtype=np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=new[1:])
    return np.flatnonzero(new), running(new) - 1


def running(flags: NDArray[np.bool_]) -> Ints:
    """How many of the flags are set up to each place."""
    short = np.int32 if len(flags) < 2**31 else np.int64  # half the time
    return np.cumsum(flags, dtype=short).astype(np.int64, copy=False)


def places(rising: Ints, values: Ints) -> Ints:
    """`np.searchsorted(rising, values)` for values that rise too."""
    if 4 * len(rising) > len(values):
        return np.searchsorted(rising, values)
    after = np.searchsorted(values, rising, side="right")
    return np.cumsum(np.bincount(after, minlength=len(values) + 1)[:-1])


def common(one: Ints, other: Ints) -> tuple[Ints, Ints]:
    """Places, in each of two rising arrays of distinct values, of the values that both hold."""
    if len(one) > len(other):
        there, here = common(other, one)
        return here, there
    if np.array_equal(one, other):
        here = np.arange(len(one), dtype=np.int64)
        return here, here
    at = np.searchsorted(other, one)
    here = np.flatnonzero(other.take(at, mode="clip") == one)
    return here, at[here]


def union(one: Ints, other: Ints) -> tuple[Ints, Ints, Ints]:
    """All values of two rising arrays of distinct values, and where each array's values went.

    The values are hashes, not below 0: the bit above tells which array one came from.
    """
    tagged = np.concatenate((one << 1, other << 1 | 1)).view(np.uint64)
    tagged.sort(kind="stable")  # merges two rising stretches, does not start over
    values = (tagged >> 1).view(np.int64)
    first, place = stretches(values)
    is_other = (tagged & 1).astype(np.bool_)
    # faster than by mask
    return values[first], place[np.flatnonzero(~is_other)], place[np.flatnonzero(is_other)]
