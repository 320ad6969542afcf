"""Range questions against Python's own min, max and set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import ranges

EMPTY = -7
STRETCHES = st.lists(
    st.lists(st.integers(-3, 3), max_size=40), min_size=1, max_size=4
)  # each owner's values
PLACES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20
)


@settings(max_examples=200, deadline=None)
@given(STRETCHES, PLACES)
def test_every_range_is_answered_as_python_would(stretches: Any, places: Any) -> None:
    values = np.array([v for stretch in stretches for v in stretch], dtype=np.int64)
    owners = np.repeat(np.arange(len(stretches)), [len(stretch) for stretch in stretches])
    asked = []
    for owner, one, other in places:
        start, stop = np.searchsorted(owners, (owner, owner + 1))
        asked.append(sorted(min(int(start) + place, int(stop)) for place in (one, other)))
    begin, end = np.array(asked, dtype=np.int64).T
    inside = [values[b:e].tolist() for b, e in asked]
    lowest = ranges.extremes(np.minimum, values, begin, end, EMPTY)
    assert lowest.tolist() == [min(some, default=EMPTY) for some in inside]
    highest = ranges.extremes(np.maximum, values, begin, end, EMPTY)
    assert highest.tolist() == [max(some, default=EMPTY) for some in inside]
    different = ranges.distinct(owners, values, begin, end)
    assert different.tolist() == [len(set(some)) for some in inside]


@pytest.mark.parametrize("size", [1, 2, 1_000, 4_096, 4_097])
def test_long_ranges_are_answered_too(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.integers(-(2**63), 2**63 - 1, size)
    values[rng.random(size) < 0.5] = 2**62
    begin = rng.integers(0, size + 1, 200)
    end = np.maximum(begin, rng.integers(0, size + 1, 200))
    owners = np.zeros(size, dtype=np.int64)
    expected = [len(set(values[b:e].tolist())) for b, e in zip(begin, end, strict=True)]
    assert ranges.distinct(owners, values, begin, end).tolist() == expected
    limit = rng.integers(0, 2 * size, 200)
    order = rng.permutation(size)
    below = ranges.count_below(order, begin, end, limit).tolist()
    assert below == [
        int((order[b:e] < top).sum()) for b, e, top in zip(begin, end, limit, strict=True)
    ]
