"""Dynamic ids in a model: admission, defaults, growth, expiry, and all of it in the state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.declaration import ModelSpec
from headrace.errors import InputError, IntegrityError
from headrace.line import LineStore
from headrace.model import Model
from headrace.model.delta import apply, same_bits
from tests.contract.model_kinds import PUBLISHED

HOUR = 3_600_000_000


def model_of(**changes: Any) -> Model:
    declared = {"family": "ftrl", "ids": "dynamic", "batch_size": 64, "ftrl_alpha": 0.5}
    declared |= {"categorical": ("user", "item"), "ftrl_l2": 0.0}
    return Model(ModelSpec.model_validate(declared | changes), seed=3)


def rows(user: Any, item: Any, label: Any, at: int = 0) -> pa.Table:
    user, item, label = np.broadcast_arrays(user, item, label)
    return pa.table(
        {
            "user": pa.array(user, pa.int64()),
            "item": pa.array(item, pa.int64()),
            "positive_weight": pa.array(label.astype(np.float32)),
            "negative_weight": pa.array(1 - label.astype(np.float32)),
            "event_at": pa.array(np.full(label.size, at), pa.timestamp("us", tz="UTC")),
        }
    )


def answer(model: Model, user: int, item: int = 0) -> float:
    return float(model.predict(rows([user], [item], [0]))[0])


def test_an_id_is_its_fields_default_until_it_came_often_enough() -> None:
    model = model_of(admit_after=3)
    model.learn(rows([1, 1, 2] * 20, 0, [1, 1, 0] * 20))  # both admitted
    model.learn(rows([8, 9, 8, 9], 0, [1, 0, 1, 0]))  # both came twice
    assert answer(model, 8) == answer(model, 9) == answer(model, 12345)
    for _ in range(10):  # from the third time on
        model.learn(rows([8, 9], 0, [1, 0]))
    assert answer(model, 8) > answer(model, 12345) + 0.1
    assert answer(model, 9) < answer(model, 12345) - 0.1


def test_unseen_ids_answer_by_what_rare_ids_have_taught() -> None:
    model = model_of(admit_after=5)
    for batch in range(20):
        rare = np.arange(32) + 100 * batch
        model.learn(rows([7] * 32 + rare.tolist(), 0, [0] * 32 + [1] * 32))
    assert answer(model, 99_999) > 0.8
    assert answer(model, 7) < 0.2


def test_a_missing_id_is_a_value_of_its_own() -> None:
    model = model_of(admit_after=2)
    for batch in range(20):
        once = 100 + batch
        model.learn(rows([-1, 5, once], 0, [1, 0, 0]))
    assert answer(model, -1) > 0.7
    assert answer(model, 99_999) < 0.3
    assert answer(model, 5) < 0.3


def test_ids_never_share_a_row_however_many_come() -> None:
    model = model_of(categorical=("user",))
    users = np.arange(3000) * 2**40
    before = model.state()
    for _ in range(3):
        model.learn(rows(users, 0, np.arange(3000) % 2))
    state = model.state()
    places = state["ids"][state["ids"][:, 1] > 1, 1]
    assert len(before["table"]) == 1024
    assert len(state["table"]) == 4096
    assert np.unique(places).size == places.size == 3000
    answers = model.predict(rows(users, 0, 0))
    assert (answers[1::2] > 0.5).all()
    assert (answers[::2] < 0.5).all()


def test_an_idle_id_is_forgotten_and_its_row_used_again() -> None:
    model = model_of(expire_after="2h", categorical=("user",))
    model.learn(rows([1, 2] * 32, 0, [1, 0] * 32))
    for hour in range(1, 9):
        model.learn(rows([2] * 64, 0, [0] * 64, at=hour * HOUR))
    assert answer(model, 1) == answer(model, 999)
    assert answer(model, 2) < answer(model, 999)
    for hour in range(9, 20):  # 900 new ids an hour, of which nearly 10,000 came
        model.learn(rows(np.arange(900) + hour * 1000, 0, np.arange(900) % 2, at=hour * HOUR))
    assert len(model.state()["table"]) <= 4096


@pytest.mark.parametrize("family", ["ftrl", "ftrl_deep"])
def test_a_restored_map_goes_on_in_the_same_bytes(family: str, tmp_path: Any) -> None:
    store = LineStore(tmp_path, "x")
    changes = {"family": family, "admit_after": 2, "expire_after": "3h"}
    draw = np.random.default_rng(0)

    def window(hour: int) -> pa.Table:
        user = draw.integers(0, 700, 1500) + 300 * hour
        return rows(user, draw.integers(-1, 9, 1500), draw.integers(0, 2, 1500), at=hour * HOUR)

    windows = [window(hour) for hour in range(7)]
    whole, resumed, reader = (model_of(**changes) for _ in range(3))
    parent = None
    for number, samples in enumerate(windows):
        if parent is not None:
            resumed.load_state(store.load(parent)[1])
        before = resumed.state()
        resumed.learn(samples)
        whole.learn(samples)
        assert same_bits(resumed.state(), whole.state()), f"window {number}"
        assert same_bits(apply(before, resumed.delta()), resumed.state())
        reader.load_state(before)
        reader.apply(resumed.delta())
        assert same_bits(reader.state(), resumed.state())
        parent = store.publish(resumed.state(), parent=parent, **PUBLISHED).version
    assert len(whole.state()["table"]) > 1024

    resumed.load_state(store.load("v000003")[1])  # rolled back, and forward again
    for samples in windows[3:]:
        resumed.learn(samples)
    assert same_bits(resumed.state(), whole.state())


def test_expiry_needs_event_times() -> None:
    model = model_of(expire_after="1h")
    with pytest.raises(InputError, match="event_at: column is missing"):
        model.learn(rows([1], [1], [1]).drop_columns(["event_at"]))


def test_a_broken_map_is_refused() -> None:
    model = model_of()
    model.learn(rows([1, 2], [1, 2], [1, 0]))
    state = model.state()
    beyond = state["ids"].copy()
    beyond[beyond[:, 1] > 1, 1] = 5000
    for broken in (beyond, state["ids"][:1000], state["ids"].astype(np.int32)):
        with pytest.raises(IntegrityError, match="no map of ids"):
            model.load_state({**state, "ids": broken})
    assert same_bits(model.state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": "hashed", "admit_after": 2}, "declare it"),
        ({"ids": "hashed", "expire_after": "1h"}, "declare it"),
        ({"family": "ftrl_deep", "wide": ("user", "item")}, "not wide"),
        ({"wide": ("user",)}, "ftrl_deep"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**changes)
