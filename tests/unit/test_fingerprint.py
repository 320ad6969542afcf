"""A fingerprint carried along by deltas is that of the whole state, and sees every changed bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.line.fingerprint import carried, fingerprint, held_by, read_through
from headrace.model.delta import State, apply, diff


def state(seed: int, rows: int = 40) -> State:
    draw = np.random.default_rng(seed)
    return {
        "table": draw.standard_normal((rows, 3), dtype=np.float32),
        "wide": draw.standard_normal((5, 17)),
        "dense": draw.standard_normal(11, dtype=np.float32),
        "step": np.array([seed], np.int64),
        "flat": np.zeros((0, 2), np.float32),
        "narrow": np.zeros((3, 0), np.float32),
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 39), max_size=30),
    st.sampled_from(["rows", "grown", "gone", "new"]),
    st.integers(0, 99),
)
def test_carried_along_a_delta_it_is_that_of_the_whole(
    touched: list[int], kind: str, seed: int
) -> None:
    before = state(seed)
    after = {name: array.copy() for name, array in before.items()}
    after["table"][touched] = -before["table"][touched]
    after["step"] += 1
    if kind == "grown":
        after["table"] = np.concatenate([after["table"], state(seed + 1, 8)["table"]])
    elif kind == "gone":
        del after["dense"]
    elif kind == "new":
        after["late"] = np.ones(2)
    delta = diff(before, after)
    assert carried(fingerprint(before), held_by(before), delta) == fingerprint(after)
    assert fingerprint(apply(before, delta)) == fingerprint(after)


@pytest.mark.parametrize("name", ["table", "wide", "dense", "step"])
def test_every_single_bit_counts(name: str) -> None:
    clean = state(1)
    known = {fingerprint(clean)}
    raw = clean[name].view(np.uint8).reshape(-1)
    for byte in range(min(raw.size, 64)):
        for bit in range(8):
            raw[byte] ^= 1 << bit
            known.add(fingerprint(clean))
            raw[byte] ^= 1 << bit
    assert len(known) == 1 + 8 * min(raw.size, 64)


def test_order_names_and_shapes_count_and_pairs_of_signs_do_not_cancel() -> None:
    table = state(1)["table"]
    swapped, mirrored = table.copy(), table.copy()
    swapped[[0, 1]] = table[[1, 0]]
    mirrored[0] = -table[0]
    states = [
        {"a": table},
        {"b": table},
        {"a": swapped},
        {"a": mirrored},
        {"a": table.reshape(-1, 6)},
        {"a": table.view(np.int32)},
        {"a": table, "b": np.zeros((0, 3), np.float32)},
    ]
    assert len({fingerprint(each) for each in states}) == len(states)


def test_a_state_read_some_rows_at_a_time_has_the_same_fingerprint() -> None:
    large = state(1, rows=20_000) | {"wide": state(2)["wide"]}
    tables = {name: len(large[name]) for name in ("table", "wide")}
    rest = {name: array for name, array in large.items() if name not in tables}
    most = 0

    def held(name: str, rows: NDArray[np.int64] | None) -> NDArray[Any] | None:
        nonlocal most
        assert rows is not None
        most = max(most, len(rows))
        return large[name][rows]

    assert read_through(tables, held, rest) == fingerprint(large)
    assert most < 20_000
    large["table"][19_999, 2] += 1
    assert read_through(tables, held, rest) == fingerprint(large) != fingerprint(state(1, 20_000))
