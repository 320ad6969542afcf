"""A delta is exact to the bit and no larger than what changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import IntegrityError
from headrace.model.delta import State, apply, diff, go_on, same_bits


def state() -> State:
    return {
        "table": np.arange(40, dtype=np.float32).reshape(10, 4),
        "dense": np.zeros(5, np.float64),
        "step": np.array([3], np.int64),
        "empty": np.zeros((3, 0)),
    }


def changed(name: str, index: tuple[int, ...], value: float) -> State:
    child = {key: array.copy() for key, array in state().items()}
    child[name][index] = value
    return child


def test_equal_states_have_an_empty_delta() -> None:
    assert diff(state(), state()) == {}
    assert same_bits(apply(state(), {}), state())


def test_a_table_gives_its_changed_rows_and_a_vector_itself() -> None:
    child = changed("table", (7, 2), -1.0)
    child["dense"][1] = 2.0
    delta = diff(state(), child)
    assert set(delta) == {"rows/table", "values/table", "whole/dense"}
    assert delta["rows/table"].tolist() == [7]
    assert same_bits(apply(state(), delta), child)


def test_the_sign_of_zero_and_the_payload_of_nan_count() -> None:
    zero = {"table": np.zeros((4, 2), np.float32)}
    minus = {"table": np.array([[0, 0], [0, -0.0], [0, 0], [0, 0]], np.float32)}
    assert diff(zero, minus)["rows/table"].tolist() == [1]
    assert same_bits(apply(zero, diff(zero, minus)), minus)
    nan = {"table": np.full((4, 2), np.nan, np.float32)}
    assert diff(nan, {"table": nan["table"].copy()}) == {}
    other = {"table": nan["table"].copy()}
    other["table"].view(np.uint32)[2, 0] ^= 1
    assert np.isnan(other["table"]).all()
    assert diff(nan, other)["rows/table"].tolist() == [2]


def test_a_mostly_changed_table_comes_whole() -> None:
    child = {**state(), "table": state()["table"] + 1}
    assert set(diff(state(), child)) == {"whole/table"}


def test_new_reshaped_and_removed_arrays_travel() -> None:
    child = state()
    child["new"] = np.ones((2, 2))
    child["table"] = np.ones((20, 4), np.float32)
    child["dense"] = child["dense"].astype(np.float32)
    del child["step"]
    assert same_bits(apply(state(), diff(state(), child)), child)


def test_applying_leaves_the_parent_alone() -> None:
    parent = state()
    apply(parent, diff(parent, changed("table", (0, 0), 9.0)))
    assert same_bits(parent, state())


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"rows/table": np.array([10]), "values/table": np.zeros((1, 4), np.float32)}, "fit"),
        ({"rows/table": np.array([-1]), "values/table": np.zeros((1, 4), np.float32)}, "fit"),
        ({"rows/table": np.array([1]), "values/table": np.zeros((1, 3), np.float32)}, "fit"),
        ({"rows/table": np.array([1])}, "fit"),
        ({"rows/other": np.array([1]), "values/other": np.zeros((1, 4))}, "fit"),
        ({"odd/table": np.array([1])}, "unknown"),
    ],
)
def test_a_delta_that_does_not_fit_its_parent_is_refused(delta: State, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        apply(state(), delta)


@given(st.data())
def test_any_pair_of_states_round_trips(data: st.DataObject) -> None:
    def draw() -> State:
        rows = data.draw(st.integers(1, 6))
        bits = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=2 * rows, max_size=2 * rows))
        table = np.array(bits, np.uint32).view(np.float32).reshape(rows, 2)
        return {"table": table, "dense": table[0].copy()}

    parent, child = draw(), draw()
    if data.draw(st.booleans()) and parent["table"].shape == child["table"].shape:
        child["table"][1:] = parent["table"][1:]
    assert same_bits(apply(parent, diff(parent, child)), child)


def test_in_place_the_same_bits_come_without_a_copy_of_the_table() -> None:
    child = changed("table", (3, 1), np.nan) | {"dense": np.ones(7)}
    own = state()
    table = own["table"]
    go_on(own, diff(state(), child))
    assert same_bits(own, child)
    assert own["table"] is table
    with pytest.raises(IntegrityError, match="'table' does not fit"):
        go_on(own, {"rows/table": np.array([10]), "values/table": np.zeros((1, 4), np.float32)})
