"""What processes that learn together give each other: rows in order, sums in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InputError
from headrace.model.peers import Peers


def shares_of(rows: int, count: int) -> list[slice]:
    return [Peers(index, count).share(rows) for index in range(count)]


@given(rows=st.integers(1, 40), count=st.integers(1, 5))
def test_shares_are_every_row_once_in_order(rows: int, count: int) -> None:
    parts = [list(range(rows))[part] for part in shares_of(rows, count)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(2, 9), count=st.integers(2, 4), seed=st.integers(0, 99))
def test_all_processes_receive_the_same_rows_and_the_same_sums(
    rows: int, count: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    slope = draw.normal(size=rows).astype(np.float32)
    gradient = draw.normal(size=(rows, 3)).astype(np.float32)
    sums = draw.normal(size=(count, 5)).astype(np.float32)
    sent: list[Any] = []

    def send(vector: Any) -> Any:
        sent.append(vector.numpy())
        return np.stack([vector.numpy()] * count)

    for index, part in enumerate(shares_of(rows, count)):
        Peers(index, count, gather=send).exchange([slope[part], gradient[part]], sums[index], rows)
    for index, part in enumerate(shares_of(rows, count)):
        peers = Peers(index, count, gather=lambda _: np.stack(sent))
        (all_slope, all_gradient), total = peers.exchange(
            [slope[part], gradient[part]], sums[index], rows
        )
        np.testing.assert_array_equal(all_slope, slope)
        np.testing.assert_array_equal(all_gradient, gradient)
        in_order = sums[0]
        for more in sums[1:]:
            in_order = in_order + more
        np.testing.assert_array_equal(total, in_order)


def test_a_process_alone_keeps_what_it_has() -> None:
    rows, total = Peers.connect(["127.0.0.1:1"], 0).exchange(["rows"], "sum", 1)
    assert (rows, total) == (["rows"], "sum")


def test_a_place_outside_the_group_is_refused() -> None:
    with pytest.raises(InputError, match="worker 2 of 2"):
        Peers.connect(["127.0.0.1:1", "127.0.0.1:2"], 2)
