"""A model of clicks and conversions: the losses of ESMM over all impressions, and corrections."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import DeclarationError, InputError
from headrace.model import Model
from headrace.model.delta import State, same_bits
from headrace.model.runtime import tf
from headrace.model.tasks import entire_space
from tests.contract.model_kinds import samples, spec_of, stream, with_column

FAMILIES = ("ftrl", "deep", "ftrl_deep", "dcn")


@cache
def traced(family: str) -> tuple[Model, State]:
    model = Model(spec_of(family), seed=7, conversion=True)
    return model, model.state()


def fresh(family: str) -> Model:
    model, state = traced(family)
    model.load_state(state)
    return model


def clicked(rows: pa.Table) -> np.ndarray:
    return rows["positive_weight"].to_numpy() > 0


def converted(rows: pa.Table) -> np.ndarray:
    return rows["conversion_positive_weight"].to_numpy() > 0


def log_loss(label: np.ndarray, probability: np.ndarray) -> float:
    return float(-np.mean(np.log(np.where(label, probability, 1 - probability))))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_both_tasks_are_learned_on_a_separable_stream(family: str) -> None:
    model, unseen = fresh(family), stream(2000, seed=1)
    before = model.predict_tasks(unseen)
    model.learn(stream(12_000, seed=3))
    after = model.predict_tasks(unseen)
    assert list(after) == ["click", "conversion", "click_and_conversion"]
    assert after["click"].tobytes() == model.predict(unseen).tobytes()
    np.testing.assert_array_equal(
        after["click_and_conversion"], after["click"] * after["conversion"]
    )
    assert log_loss(clicked(unseen), after["click"]) < 0.42
    assert log_loss(converted(unseen), after["click_and_conversion"]) < 0.7 * log_loss(
        converted(unseen), before["click_and_conversion"]
    )
    item, unclicked = unseen["item"].to_numpy(), ~clicked(unseen)
    assert after["conversion"][unclicked & (item % 10 == 0)].mean() > 0.55  # in truth 0.9
    assert after["conversion"][unclicked & (item % 5 != 0)].mean() < 0.22  # in truth 0.1


def test_the_slopes_are_the_gradients_of_the_losses_of_the_paper() -> None:
    draw = np.random.default_rng(0)
    logits = tf.constant(draw.normal(0, 3, (200, 2)))
    weights = tf.constant(draw.choice([-1.0, 0.0, 1.0], (200, 4)))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        p, q = tf.sigmoid(logits[:, 0]), tf.sigmoid(logits[:, 1])
        of_paper = -(
            weights[:, 0] * tf.math.log(p)
            + weights[:, 1] * tf.math.log(1 - p)
            + weights[:, 2] * tf.math.log(p * q)
            + weights[:, 3] * tf.math.log(1 - p * q)
        )
    losses, slopes = entire_space(weights, logits)
    np.testing.assert_allclose(losses, of_paper, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slopes, tape.gradient(of_paper, logits), rtol=1e-9, atol=1e-9)


def test_the_losses_stay_finite_where_a_probability_is_0_or_1() -> None:
    extremes = np.array([-200.0, -30.0, 0.0, 30.0, 200.0], np.float32)
    logits = np.stack(np.meshgrid(extremes, extremes), -1).reshape(-1, 2)
    for weights in ((1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, -1), (1, -1, 1, -1)):
        for part in entire_space(np.tile(np.float32(weights), (len(logits), 1)), logits):
            assert np.isfinite(part).all()
    _, slopes = entire_space(np.float32([[1, 0, 0, 1]]), np.float32([[40.0, 40.0]]))
    assert slopes[0, 1] > 0.4  # a sure conversion that did not come is pushed down


@pytest.mark.parametrize("family", FAMILIES)
def test_a_late_conversion_takes_its_zero_back(family: str) -> None:
    def learned(*facts: tuple[float, float, float, float]) -> State:
        row, model = stream(1, seed=2), fresh(family)
        model.learn(stream(200, seed=1))
        names = [n for n in row.column_names if n.endswith("_weight")]
        rows = [row] * len(facts)
        table = pa.concat_tables(rows).combine_chunks()
        for name, values in zip(names, zip(*facts, strict=True), strict=True):
            table = with_column(table, name, values)
        model.learn(table)
        return model.state()

    at_once = learned((1, 0, 1, 0))
    split = learned((0, 1, 0, 1), (1, -1, 0, 0), (0, 0, 1, -1))
    for name, array in at_once.items():
        np.testing.assert_allclose(split[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_conversions_that_come_late_leave_no_bias() -> None:
    """One item: a fifth is clicked, half of that converts, each conversion 300 rows later."""
    draw, facts = np.random.default_rng(5), []
    for row in range(20_000):
        if draw.random() >= 0.2:
            facts.append((row, 0, 1, 0, 1))
            continue
        facts.append((row, 1, 0, 0, 1))
        if draw.random() < 0.5 and row + 300 < 20_000:
            facts.append((row + 300, 0, 0, 1, -1))
    _, *columns = np.array(sorted(facts, key=lambda fact: fact[0])).T
    ones = np.ones(columns[0].size)
    table = samples(ones, ones, ones, ones, ones)
    names = [n for n in table.column_names if n.endswith("_weight")]
    for name, values in zip(names, columns, strict=True):
        table = with_column(table, name, values.astype(np.float32))
    model = Model(spec_of("ftrl", numeric=()), seed=7, conversion=True)
    model.learn(table)
    found = model.predict_tasks(table.slice(0, 1))
    assert found["click"][0] == pytest.approx(0.2, abs=0.02)
    assert found["conversion"][0] == pytest.approx(0.5, abs=0.05)


def test_one_task_and_two_do_not_load_each_other() -> None:
    one, two = Model(spec_of("ftrl"), seed=7), fresh("ftrl")
    for model, other in ((one, two), (two, one)):
        before = model.state()
        with pytest.raises(DeclarationError, match="another declaration or seed"):
            model.load_state(other.state())
        assert same_bits(before, model.state())
    assert list(one.predict_tasks(stream(3))) == ["click"]


def test_what_two_tasks_cannot_learn_is_refused_by_name() -> None:
    with pytest.raises(DeclarationError, match="esdfm weighs one task"):
        Model(spec_of("ftrl"), 7, "esdfm", conversion=True)
    model, rows = fresh("ftrl"), stream(5)
    before = model.state()
    with pytest.raises(InputError, match="conversion_negative_weight: column is missing"):
        model.learn(rows.drop_columns(["conversion_negative_weight"]))
    with pytest.raises(InputError, match="conversion_positive_weight: nan in row 0"):
        model.learn(with_column(rows, "conversion_positive_weight", [np.nan] * 5))
    assert same_bits(before, model.state())
