"""What every model family keeps: learning, prediction, refusals."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import InputError
from headrace.line import LineStore
from headrace.model import Model
from headrace.model.delta import State, same_bits
from tests.contract.model_kinds import (
    BATCH,
    PUBLISHED,
    samples,
    spec_of,
    stream,
    weighed,
    with_column,
)
from tests.contract.models import fresh, model_of


def loss_of(model: Model, table: pa.Table) -> float:
    probability = model.predict(table)
    label = table["positive_weight"].to_numpy()
    return float(-np.mean(np.log(np.where(label > 0, probability, 1 - probability))))


def test_log_loss_falls_on_a_separable_stream(model: Model) -> None:
    unseen = stream(1000, seed=1)
    before = loss_of(model, unseen)
    first = model.learn(stream(640, seed=2))
    later = model.learn(stream(8000, seed=3))
    assert before == pytest.approx(math.log(2), abs=0.02)
    assert (first.rows, later.rows) == (640, 8000)
    assert later.loss < first.loss
    assert loss_of(model, unseen) < 0.42  # the noise leaves about 0.29 (all features) to 0.37
    assert model.is_finite()


@pytest.mark.slow
def test_cross_layers_learn_a_product_that_no_sum_holds() -> None:
    """Without hidden layers the network is linear too: what it learns, the crosses have learned."""
    draw = np.random.default_rng(4)
    user, item = draw.integers(0, 6, (2, 12_000))
    table = samples(user, item, np.ones(12_000), np.ones(12_000), user % 2 != item % 2)
    losses = {}
    for family in ("ftrl", "deep", "dcn"):
        model = Model(spec_of(family, hidden=()), seed=7)
        model.learn(table)
        losses[family] = loss_of(model, table.slice(10_000))
    assert losses["ftrl"] > 0.68
    assert losses["deep"] > 0.68
    assert losses["dcn"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ftrl", "deep"])
def test_a_learning_rate_floor_lets_an_old_id_change_its_mind(family: str) -> None:
    def fed(floor: float) -> tuple[float, Model]:
        spec = spec_of(family, learning_rate_floor=floor, numeric=())
        model = Model(spec, seed=7)
        for label in (0, 1):
            ones = np.ones(BATCH * 60)
            model.learn(samples(ones, ones, ones, ones, ones * label))
        return model.predict(samples([1], [1], [1], [1], [1]))[0], model

    assert same_bits(fed(0.0)[1].state(), fed(1e-6)[1].state())  # nothing has come so far
    (without, _), (with_floor, model) = fed(0.0), fed(0.2)
    assert 1 - with_floor < (1 - without) / 2
    least = spec_of(family).ftrl_beta * 4 if family == "ftrl" else math.sqrt(0.1) / 0.2
    sums = model.state()["table"][:, 1 if family == "ftrl" else slice(4, 8)]
    assert math.sqrt(sums.max()) == pytest.approx(least)


def test_the_rate_of_positives_is_learned_within_a_batch(model: Model) -> None:
    rare = stream(BATCH)
    rare = weighed(rare, [1.0] + [0.0] * (BATCH - 1), [0.0] + [1.0] * (BATCH - 1))
    model.learn(rare)
    assert model.predict(stream(100, seed=5)).mean() < 0.15


def test_learning_rows_of_no_weight_leaves_every_parameter(model: Model) -> None:
    model.learn(stream(10, seed=1))
    before = model.state()
    nothing = weighed(stream(10, seed=1), [0.0] * 10, [0.0] * 10)
    assert model.learn(nothing).loss == 0.0
    after = model.state()
    for name in {"table", "wide", "linear", "moments", "classes"} & set(before):
        assert same_bits({name: before[name]}, {name: after[name]})


def test_a_probability_does_not_depend_on_the_other_rows(model: Model) -> None:
    model.learn(stream(300, seed=1))
    many = stream(600, seed=2)
    together = model.predict(many)
    alone = np.concatenate([model.predict(many.slice(row, 1)) for row in range(0, 600, 37)])
    assert together[::37].tobytes() == alone.tobytes()
    backwards = model.predict(many.take(np.arange(600)[::-1]))
    assert backwards[::-1].tobytes() == together.tobytes()
    assert ((together > 0) & (together < 1)).all()


def test_predictions_of_several_threads_at_once_are_those_of_one(
    model: Model,
) -> None:
    model.learn(stream(300, seed=1))
    sizes = np.random.default_rng(6).integers(1, 151, (4, 20))
    parts = [
        [stream(size, seed=100 * thread + place) for place, size in enumerate(of_thread)]
        for thread, of_thread in enumerate(sizes)
    ]

    def predicted(asked: list[pa.Table]) -> list[bytes]:
        return [model.predict(rows).tobytes() for rows in asked]

    alone = [predicted(asked) for asked in parts]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a prediction too
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            together = list(pool.map(predicted, parts))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone


def gradient_step(family: str, table: pa.Table) -> State:
    model = fresh(family, "first")
    model.learn(stream(200, seed=1))
    model.learn(table)
    return model.state()


def test_a_correction_takes_its_negative_back(family: str) -> None:
    row = stream(1, seed=2)
    positive = weighed(row, [1.0], [0.0])
    negative = weighed(row, [0.0], [1.0])
    correction = weighed(row, 1.0, -1.0)
    both = gradient_step(family, pa.concat_tables([negative, correction]))
    once = gradient_step(family, positive)
    within = 1e-2 if family == "bfloat16" else 1e-4  # its products have 8 bits, as it says
    for name, array in once.items():
        np.testing.assert_allclose(both[name], array, rtol=within, atol=within / 100, err_msg=name)


def test_corrections_of_unknown_negatives_stay_finite(model: Model) -> None:
    correction = weighed(stream(300), [1.0] * 300, [-1.0] * 300)
    model.learn(correction)
    assert model.is_finite()
    assert (model.predict(correction) > 0.5).all()


def test_no_rows_are_a_no_op(model: Model) -> None:
    model.learn(stream(10))
    before = model.state()
    report = model.learn(stream(10).slice(0, 0))
    assert (report.rows, report.loss) == (0, 0.0)
    assert same_bits(before, model.state())
    assert model.predict(stream(10).slice(0, 0)).shape == (0,)


def test_missing_values_are_learned_as_such(model: Model) -> None:
    draw = np.random.default_rng(0)
    rows = 12_000
    missing = draw.random(rows) < 0.5
    rate = np.where(missing, np.nan, draw.random(rows))
    table = samples(np.ones(rows, int), np.ones(rows, int), rate, np.ones(rows), missing)
    model.learn(table)
    probability = model.predict(table)
    assert probability[missing].min() > 0.7
    assert probability[~missing].max() < 0.3
    nulls = with_column(table.slice(0, 9), "rate", [None] * 9)
    nans = with_column(table.slice(0, 9), "rate", [np.nan] * 9)
    assert np.array_equal(model.predict(nulls), model.predict(nans))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_numbers_are_refused_by_name(model: Model, value: float) -> None:
    before = model.state()
    broken = with_column(stream(100), "rate", [0.5] * 99 + [value])
    for use in (model.learn, model.predict):
        with pytest.raises(InputError, match=r"rate: -?inf in row 99"):
            use(broken)
    assert same_bits(before, model.state())


def test_huge_numbers_stay_finite(model: Model) -> None:
    huge = with_column(stream(4), "rate", [1e300, -1e300, 0.5, np.nan])
    model.learn(huge)
    assert model.is_finite()
    assert np.isfinite(model.predict(huge)).all()


def test_unfit_columns_are_refused_by_name(model: Model) -> None:
    table = stream(5)
    with pytest.raises(InputError, match="item: column is missing"):
        model.predict(table.drop_columns(["item"]))
    text = table.set_column(0, "user", pa.array(["a"] * 5))
    with pytest.raises(InputError, match="user: ids must be int64"):
        model.predict(text)
    with pytest.raises(InputError, match="negative_weight: nan in row 0"):
        model.learn(with_column(table, "negative_weight", [np.nan] * 5))


@pytest.mark.parametrize("changes", [{"categorical": (), "hidden": ()}, {"numeric": ()}])
def test_a_model_may_lack_ids_numbers_or_layers(
    family: str, changes: dict[str, Any], tmp_path: Any
) -> None:
    model = model_of(family, **changes)
    model.learn(stream(150))
    store = LineStore(tmp_path, "x")
    version = store.publish(model.state(), parent=None, **PUBLISHED)
    assert same_bits(store.load(version.version)[1], model.state())
    assert np.isfinite(model.predict(stream(10))).all()
