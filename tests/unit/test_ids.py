"""The map of dynamic ids against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.ids import DynamicIds, first_capacity

FIELDS = 2
BATCHES = st.lists(
    st.tuples(
        st.integers(0, 50),  # time passed
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30),
    ),
    max_size=12,
)


class Naive:
    """One dictionary entry an id: count, last time, row."""

    def __init__(self, admit_after: int, expire_after_us: int) -> None:
        self.admit_after, self.expire_after_us = admit_after, expire_after_us
        self.known: dict[int, list[int | None]] = {}
        self.now = self.swept = 0

    def see(self, keys: list[int], at_us: int) -> None:
        self.now = max(self.now, at_us)
        if self.now - self.swept >= self.expire_after_us // 4:
            self.swept = self.now
            since = self.now - self.expire_after_us
            self.known = {key: entry for key, entry in self.known.items() if entry[1] >= since}
        for key in keys:
            entry = self.known.setdefault(key, [0, self.now])
            entry[0] += 1
            entry[1] = self.now

    def admitted(self) -> set[int]:
        return {key for key, (count, _) in self.known.items() if count >= self.admit_after}


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.integers(1, 4), st.integers(4, 200))
def test_rows_counts_and_expiry_are_those_of_a_dictionary(
    batches: list[tuple[int, list[tuple[int, int]]]], admit_after: int, expire_after: int
) -> None:
    ids, naive, now = (
        DynamicIds(FIELDS, admit_after, expire_after),
        Naive(admit_after, expire_after),
        0,
    )
    for passed, pairs in batches:
        now += passed
        # keys far apart that fall into the same few slots, so that searches must go on
        keys = np.array(pairs, np.uint64) * np.uint64(1 << 40) + np.array([1, 2], np.uint64)
        missing = np.zeros(keys.shape, np.bool_)
        rows, fresh, _ = ids.see(keys, missing, np.ones(len(keys), np.bool_), now)
        naive.see(keys.ravel().tolist(), now)
        admitted = naive.admitted()
        given_ = dict(zip(keys.ravel().tolist(), rows.ravel().tolist(), strict=True))
        assert {key for key, row in given_.items() if row >= 2 * FIELDS} == admitted & set(given_)
        taken = ids.state()["ids"]
        taken = taken[taken[:, 1] > 0]
        assert {int(k): [c, t] for k, _, c, t in taken.tolist()} == naive.known
        places = taken[taken[:, 1] > 1, 1] - 2
        assert np.unique(places).size == places.size == len(admitted)
        assert set(fresh.tolist()) <= set(places.tolist())
        again = DynamicIds(FIELDS, admit_after, expire_after)
        again.load(ids.state(), ids.capacity)
        assert np.array_equal(again.rows(keys, missing), rows)


def test_the_smallest_free_row_is_taken_first_and_capacity_doubles() -> None:
    ids = DynamicIds(FIELDS, 1, None)
    keys = np.arange(2000, dtype=np.uint64).reshape(-1, FIELDS) + np.uint64(7)
    none = np.zeros(keys.shape, np.bool_)
    rows, fresh, _ = ids.see(keys, none, np.ones(len(keys), np.bool_), 0)
    assert ids.capacity == 2 * first_capacity(FIELDS) == 2048
    assert sorted(rows.ravel().tolist()) == sorted(fresh.tolist()) == list(range(4, 2004))


def test_rows_that_do_not_count_leave_the_map_alone() -> None:
    ids = DynamicIds(FIELDS, 1, None)
    keys, none = np.array([[5, 6]], np.uint64), np.zeros((1, FIELDS), np.bool_)
    rows, fresh, _ = ids.see(keys, none, np.zeros(1, np.bool_), 0)
    assert (rows.tolist(), fresh.size) == ([[0, 1]], 0)
    assert not ids.state()["ids"].any()
    assert ids.rows(keys, ~none).tolist() == [[2, 3]]
