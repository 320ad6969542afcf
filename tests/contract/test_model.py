"""What every model family keeps: learning, exact continuation, padding, determinism, refusals."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.declaration import ModelSpec
from headrace.errors import DeclarationError, InputError, IntegrityError
from headrace.line import LineStore
from headrace.model import Model
from headrace.model.delta import State, apply, diff, same_bits

KINDS: dict[str, dict[str, Any]] = {
    "ftrl": {"family": "ftrl"},
    "deep": {"family": "deep"},
    "ftrl_deep": {"family": "ftrl_deep"},
    "dcn": {"family": "dcn", "cross_rank": 3},
    "wide": {"family": "ftrl_deep", "wide": ("user",)},
    "dynamic": {"family": "ftrl_deep", "ids": "dynamic", "admit_after": 2, "expire_after": "1h"},
    "bfloat16": {"family": "dcn", "precision": "bfloat16"},
    "dynamic wide": {"family": "ftrl_deep", "wide": ("item",), "ids": "dynamic"},
    "two tasks": {"family": "ftrl_deep", "wide": ("item",)},
    "two tasks dcn": {"family": "dcn", "cross_rank": 3, "ids": "dynamic"},
}
# every kind of table and of network, for another process
ELSEWHERE = ("wide", "dcn", "dynamic", "two tasks")
# building their graphs takes long, and each shares its parts with one of the others
MIXTURES = {"deep", "ftrl_deep", "bfloat16", "dynamic wide", "two tasks dcn"}
BATCH = 64
FIELDS = ("user", "item")
NUMBERS = ("rate", "log_count")
PUBLISHED: dict[str, Any] = {
    "from_tick": 0,
    "to_tick": 1,
    "excluded": [],
    "watermark_us": 1,
    "event_at_us": 1,
    "feature_service": "x_v1",
    "code": "test",
    "rows": 1,
    "metrics": {},
}


def spec_of(family: str, **changes: Any) -> ModelSpec:
    declared = {
        **KINDS[family],
        "categorical": FIELDS,
        "numeric": NUMBERS,
        "table_bits": 10,
        "embedding_dim": 4,
        "hidden": (16, 8),
        "batch_size": BATCH,
        "ftrl_alpha": 0.1,
        "dense_learning_rate": 0.01,
    }
    if not changes.get("categorical", True):
        changes |= {"wide": (), "ids": "hashed", "admit_after": 1, "expire_after": None}
    return ModelSpec.model_validate(declared | changes)


def model_of(family: str, **changes: Any) -> Model:
    return Model(spec_of(family, **changes), seed=7, conversion=family.startswith("two tasks"))


def stream(rows: int, seed: int = 0) -> pa.Table:
    """The item decides the label up to noise; the rate helps; some values are missing.

    What was clicked converts by its item too, otherwise than it was clicked.
    """
    draw = np.random.default_rng(seed)
    item = draw.integers(0, 20, rows)
    rate = draw.random(rows)
    logit = np.where(item % 2 == 0, 2.5, -2.5) + 3 * (rate - 0.5)
    label = draw.random(rows) < 1 / (1 + np.exp(-logit))
    user = draw.integers(0, 2**63 - 1, 40)[draw.integers(0, 40, rows)]
    user[draw.random(rows) < 0.1] = -1
    rate[draw.random(rows) < 0.1] = np.nan
    log_count = draw.random(rows) * 10
    converted = label & (draw.random(rows) < conversion_rate(item))
    return samples(user, item, rate, log_count, label, converted)


def conversion_rate(item: Any) -> Any:
    return np.where(item % 5 == 0, 0.9, 0.1)


def samples(
    user: Any, item: Any, rate: Any, log_count: Any, label: Any, converted: Any = 0
) -> pa.Table:
    converted = np.broadcast_to(np.asarray(converted, np.float32), np.shape(label))
    return pa.table(
        {
            "user": pa.array(user, pa.int64()),
            "item": pa.array(item, pa.int64()),
            "rate": pa.array(rate, pa.float64()),
            "log_count": pa.array(log_count, pa.float64()),
            "positive_weight": pa.array(np.asarray(label, np.float32)),
            "negative_weight": pa.array(1 - np.asarray(label, np.float32)),
            "conversion_positive_weight": pa.array(converted),
            "conversion_negative_weight": pa.array(1 - converted),
            "event_at": pa.array(np.arange(len(label)) * 10_000_000),
        }
    )


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, name, pa.array(values, table.schema.field(name).type))


def weighed(table: pa.Table, positive: Any, negative: Any) -> pa.Table:
    """The rows with these weights of the click, of which none converts."""
    positive, negative = (np.broadcast_to(w, table.num_rows) for w in (positive, negative))
    weights = {"positive_weight": positive, "negative_weight": negative}
    weights |= {"conversion_positive_weight": 0 * positive}
    weights |= {"conversion_negative_weight": positive + negative}
    for name, values in weights.items():
        table = with_column(table, name, values.astype(np.float32))
    return table


def loss_of(model: Model, table: pa.Table) -> float:
    probability = model.predict(table)
    label = table["positive_weight"].to_numpy()
    return float(-np.mean(np.log(np.where(label > 0, probability, 1 - probability))))


@pytest.fixture(
    params=[pytest.param(k, marks=pytest.mark.slow if k in MIXTURES else ()) for k in KINDS]
)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def traced(family: str, use: str) -> tuple[Model, State]:
    model = model_of(family)
    return model, model.state()


def fresh(family: str, use: str) -> Model:
    """A model put back to its first state: building a graph costs more than a test does."""
    model, state = traced(family, use)
    model.load_state(state)
    return model


@pytest.fixture
def model(family: str) -> Model:
    return fresh(family, "first")


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


def test_continuing_from_a_state_equals_never_having_stopped(family: str, model: Model) -> None:
    first, second = stream(150, seed=1), stream(150, seed=2)
    model.learn(first)
    resumed = fresh(family, "second")
    resumed.learn(stream(70, seed=9))  # whatever it was before, the state replaces it
    resumed.load_state(model.state())
    assert resumed.learn(second) == model.learn(second)
    assert same_bits(resumed.state(), model.state())
    assert resumed.predict(first).tobytes() == model.predict(first).tobytes()


def test_continuing_through_the_line_store_equals_never_having_stopped(
    family: str, model: Model, tmp_path: Any
) -> None:
    store = LineStore(tmp_path, "x")
    model.learn(stream(150, seed=1))
    base = store.publish(model.state(), parent=None, **PUBLISHED)
    resumed = fresh(family, "second")
    resumed.load_state(store.load(base.version)[1])
    resumed.learn(stream(20, seed=2))
    child = store.publish(resumed.state(), parent=base.version, **PUBLISHED)
    again = model_of(family)
    again.load_state(LineStore(tmp_path, "x").load(child.version)[1])
    again.learn(stream(150, seed=3))
    model.learn(stream(20, seed=2))
    model.learn(stream(150, seed=3))
    assert (base.kind, child.kind) == ("base", "delta")
    assert same_bits(again.state(), model.state())


def test_a_delta_equals_the_full_state_and_holds_only_touched_rows(model: Model) -> None:
    model.learn(stream(150, seed=1))
    parent = model.state()
    model.learn(stream(10, seed=2))
    child = model.state()
    delta = diff(parent, child)
    assert same_bits(apply(parent, delta), child)
    assert 0 < len(delta["rows/table"]) <= 2 * 10 + 2 * len(FIELDS)


def test_a_seed_means_the_same_bytes(family: str) -> None:
    one, two = model_of(family), fresh(family, "first")
    assert same_bits(one.state(), two.state())
    one.learn(stream(150))
    two.learn(stream(150))
    assert same_bits(one.state(), two.state())


def test_another_seed_mixes_ids_and_draws_weights_anew(family: str, model: Model) -> None:
    other = Model(spec_of(family), seed=8)
    other.learn(stream(150))
    model.learn(stream(150))
    assert not same_bits({"table": model.state()["table"]}, {"table": other.state()["table"]})


def digest_of(family: str) -> str:
    model = fresh(family, "first")
    model.learn(stream(150))
    state = model.state()
    bytes_ = b"".join(state[name].tobytes() for name in sorted(state))
    return hashlib.sha256(bytes_ + model.predict(stream(50)).tobytes()).hexdigest()


@pytest.mark.slow
def test_another_process_ends_in_the_same_bytes_and_starts_quietly() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_model as t\n"
    program += "for family in t.ELSEWHERE: print(t.digest_of(family))"
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [digest_of(family) for family in ELSEWHERE]
    assert done.stderr == ""


def test_the_padding_of_a_short_batch_changes_nothing(family: str) -> None:
    ten = stream(10, seed=2)
    padded, exact = fresh(family, "first"), model_of(family, batch_size=10)
    padded.learn(stream(150, seed=1))
    before = padded.state()
    exact.load_state(before)
    assert padded.learn(ten).loss == pytest.approx(exact.learn(ten).loss, rel=1e-6)
    for name in ("rows/table", "rows/wide", "rows/ids"):
        touched = [diff(before, model.state()).get(name) for model in (padded, exact)]
        assert np.array_equal(*touched)
    for name, array in exact.state().items():
        # the scale of Adam's gradient, not its direction, follows the batch size
        if not name.startswith("dense"):
            np.testing.assert_allclose(padded.state()[name], array, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, BATCH - 10])
def test_a_padding_row_changes_no_bit(family: str, count: int) -> None:
    ten = stream(10, seed=2)
    padding = ten.take(np.resize([0, 3, 9], count))
    padding = weighed(padding, 0.0, 0.0)
    alone, padded = fresh(family, "first"), fresh(family, "second")
    for model in (alone, padded):
        model.learn(stream(150, seed=1))
    alone.learn(ten)
    padded.learn(pa.concat_tables([ten, padding]).combine_chunks())
    assert same_bits(padded.state(), alone.state())


def test_the_order_of_rows_within_a_batch_does_not_matter(family: str) -> None:
    batch = stream(BATCH, seed=2)
    forwards, backwards = fresh(family, "first"), fresh(family, "second")
    forwards.learn(batch)
    backwards.learn(batch.take(np.arange(BATCH)[::-1]))
    for name, array in forwards.state().items():
        np.testing.assert_allclose(backwards.state()[name], array, rtol=1e-4, atol=2e-6)


def test_the_models_own_delta_gives_the_full_state_and_applies_in_place(family: str) -> None:
    writer, reader = fresh(family, "first"), fresh(family, "second")
    writer.learn(stream(150, seed=1))
    parent = writer.state()
    reader.load_state(parent)
    writer.mark()
    assert writer.delta() == {}
    for seed in (2, 3):
        writer.learn(stream(10, seed=seed))
    own = writer.delta()
    assert same_bits(apply(parent, own), writer.state())
    assert {name for name in own if name.startswith("rows/")} >= {"rows/table"}
    assert len(own["rows/table"]) <= 2 * 20 + 2 * len(FIELDS)
    reader.apply(own)
    assert same_bits(reader.state(), writer.state())
    assert reader.learn(stream(70, seed=4)) == writer.learn(stream(70, seed=4))
    assert same_bits(reader.state(), writer.state())


def test_a_delta_that_does_not_fit_changes_nothing(family: str, model: Model) -> None:
    other = fresh(family, "second")
    other.learn(stream(150, seed=1))
    delta = other.delta()
    before = model.state()
    for name, array in (("values/table", np.zeros((1, 1), np.float32)), ("whole/odd", np.ones(1))):
        with pytest.raises(IntegrityError, match=r"table|odd"):
            model.apply({**delta, name: array})
        assert same_bits(model.state(), before)


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


def test_a_foreign_or_broken_state_is_refused_whole(family: str, model: Model) -> None:
    before = model.state()
    with pytest.raises(DeclarationError, match="another declaration or seed"):
        model.load_state(model_of(family, numeric=("rate",)).state())
    broken = {**before, "moments": np.ones((3, 7))}
    with pytest.raises(IntegrityError, match="moments"):
        model.load_state(broken)
    with pytest.raises(IntegrityError, match="table"):
        model.load_state({k: v for k, v in before.items() if k != "table"})
    assert same_bits(before, model.state())


def test_a_nan_in_the_state_is_seen(model: Model) -> None:
    state = model.state()
    state["table"][3, 0] = np.nan
    model.load_state(state)
    assert not model.is_finite()


def test_a_state_is_a_copy(model: Model) -> None:
    model.learn(stream(100))
    state = model.state()
    kept = {name: array.copy() for name, array in state.items()}
    model.learn(stream(100, seed=1))
    assert same_bits(state, kept)
    model.load_state(state)
    model.learn(stream(100, seed=1))
    assert same_bits(state, kept)


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
