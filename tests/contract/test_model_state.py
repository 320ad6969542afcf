"""What every model family keeps of its state: exact continuation, deltas, padding, determinism."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import DeclarationError, IntegrityError
from headrace.line import LineStore
from headrace.model import Model, layout
from headrace.model.delta import apply, diff, same_bits
from headrace.model.tables import Tables
from headrace.settings import PROJECT
from tests.contract.model_kinds import BATCH, FIELDS, PUBLISHED, spec_of, stream, weighed
from tests.contract.models import ELSEWHERE, digest_of, fresh, model_of


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


@pytest.mark.slow
def test_another_process_ends_in_the_same_bytes_and_starts_quietly() -> None:
    program = "from tests.contract import models as m\n"
    program += "for family in m.ELSEWHERE: print(m.digest_of(family))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
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


def test_a_model_beside_another_takes_over_its_state_and_goes_on_in_the_same_bytes(
    family: str, model: Model
) -> None:
    model.learn(stream(150, seed=1))
    whole = model.state()
    beside = fresh(family, "second")
    beside.learn(stream(700, seed=9))
    rest = {name: array for name, array in whole.items() if name not in model.tables}
    beside.load_beside(model, rest)
    assert same_bits(beside.state(), whole)
    assert beside.predict(stream(20)).tobytes() == model.predict(stream(20)).tobytes()
    beside.learn(stream(70, seed=2))
    assert same_bits(model.state(), whole)  # they share no memory
    model.learn(stream(70, seed=2))
    assert same_bits(beside.state(), model.state())


def test_a_prediction_is_that_of_the_state_however_the_model_came_to_it(
    family: str, model: Model
) -> None:
    """What a prediction derives from the state once is derived anew after each change."""
    asked, writer = stream(20, seed=5), fresh(family, "second")
    seen = []

    def look() -> None:
        anew = model_of(family)
        anew.load_state(model.state())
        expected, found = anew.predict_tasks(asked), model.predict_tasks(asked)
        assert {task: scores.tobytes() for task, scores in found.items()} == {
            task: scores.tobytes() for task, scores in expected.items()
        }
        seen.append(found["click"].tobytes())

    look()
    model.learn(stream(150, seed=1))
    look()
    learned = model.state()
    model.learn(stream(10, seed=2))
    look()
    writer.load_state(model.state())
    writer.learn(stream(10, seed=3))
    model.apply(writer.delta())
    look()
    writer.learn(stream(700, seed=4))
    model.apply({f"whole/{name}": array for name, array in writer.state().items()})
    look()
    writer.learn(stream(10, seed=6))
    small = {name: array for name, array in writer.state().items() if name not in writer.tables}
    model.load_beside(writer, small)
    look()
    assert len(set(seen)) == len(seen)
    model.load_state(learned)
    look()
    assert seen[-1] == seen[1]


def test_a_model_of_another_seed_or_without_its_arrays_is_not_taken_over(model: Model) -> None:
    rest = {name: array for name, array in model.state().items() if name not in model.tables}
    own = Model(model.spec, seed=model.seed + 1, conversion=model.conversion)
    before = own.state()
    del rest["identity"]
    with pytest.raises(DeclarationError, match="another declaration or seed"):
        own.load_beside(model, rest)
    with pytest.raises(IntegrityError, match="'moments'"):
        own.load_beside(own, {name: rest[name] for name in rest if name != "moments"})
    assert same_bits(own.state(), before)


@pytest.mark.parametrize("kind", ["ftrl", "wide", "dynamic"])
def test_a_blank_model_is_a_fresh_one_once_a_state_is_loaded(kind: str) -> None:
    spec = spec_of(kind)
    known = Model(spec, 1)
    known.learn(stream(150, seed=1))
    blank = Model(spec, 1, blank=True)
    blank.load_state(known.state())
    assert same_bits(blank.state(), known.state())
    assert blank.delta() == {}


def test_a_table_is_handed_over_in_parts_and_their_size_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To hand a large one over at once stops all threads, those that answer requests too."""
    spec = spec_of("wide", table_bits=16)
    one_part = {}
    with monkeypatch.context() as patched:
        patched.setattr(layout, "_ROWS_AT_ONCE", 1 << 16)
        one_part = Model(spec, 1).state()
    given: list[int] = []
    write = Tables._write

    def spied(tables: Tables, name: str, rows: Any, values: Any) -> None:
        given.append(len(values))
        write(tables, name, rows, values)

    monkeypatch.setattr(Tables, "_write", spied)
    fresh_one = Model(spec, 1)
    assert same_bits(fresh_one.state(), one_part)
    again = Model(spec, 1, blank=True)
    again.load_state(one_part)
    assert same_bits(again.state(), one_part)
    again.load_beside(fresh_one, {n: a for n, a in one_part.items() if n not in again.tables})
    assert same_bits(again.state(), one_part)
    # the fresh rows of the one table, then both tables twice
    assert given == [1 << 14] * 4 * 5
