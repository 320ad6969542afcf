"""Sorts and sorted sets against NumPy's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace import order

FEW, ANY = st.integers(-2, 3), st.integers(-(2**63), 2**63 - 1)
CLOSE = st.builds(lambda high, low: (high << 40) + low, st.integers(-2, 2), st.integers(0, 9))
VALUES = st.one_of(*(st.lists(some, max_size=60) for some in (FEW, ANY, CLOSE)))
HASHES = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1)), max_size=60)


def ints(values: Any) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_the_stable_order_is_that_of_numpy(values: Any) -> None:
    expected = np.argsort(ints(values), kind="stable")
    assert order.stable_order(ints(values)).tolist() == expected.tolist()
    assert order.rises(ints(values)) == (sorted(values) == values)


@pytest.mark.parametrize("shift", [0, 30, 44])
def test_hashes_that_share_their_leading_bits_are_still_sorted_whole(shift: int) -> None:
    rng = np.random.default_rng(shift)
    values = rng.integers(0, 2**62, 20_000)
    torn = rng.integers(0, 20_000, 2_000)
    values[torn] = (values[torn] >> shift << shift) + rng.integers(0, 5, 2_000)
    values[5_000:6_000] = values[:1_000] + 1
    expected = np.argsort(values, kind="stable")
    assert order.stable_order(values).tolist() == expected.tolist()


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_stretches_give_what_unique_gives(values: Any) -> None:
    rising = np.sort(ints(values))
    _, first, inverse = np.unique(rising, return_index=True, return_inverse=True)
    starts, of = order.stretches(rising)
    assert starts.tolist() == first.tolist()
    assert of.tolist() == inverse.tolist()


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
def test_places_are_those_of_a_search_whichever_is_longer(one: Any, other: Any) -> None:
    rising, values = np.sort(ints(one)), np.sort(ints(other * 3))
    expected = np.searchsorted(rising, values)
    assert order.places(rising, values).tolist() == expected.tolist()


@settings(max_examples=300, deadline=None)
@given(HASHES, HASHES)
def test_sets_are_cut_and_united_as_numpy_does(one: Any, other: Any) -> None:
    ours, theirs = np.unique(ints(one)), np.unique(ints(other))
    both, here, there = np.intersect1d(ours, theirs, return_indices=True)
    assert [places.tolist() for places in order.common(ours, theirs)] == [
        here.tolist(),
        there.tolist(),
    ]
    values, old, new = order.union(ours, theirs)
    assert values.tolist() == np.union1d(ours, theirs).tolist()
    assert values[old].tolist() == ours.tolist()
    assert values[new].tolist() == theirs.tolist()
    assert len(both) == len(ours) + len(theirs) - len(values)
