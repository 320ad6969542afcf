"""A search halves its trials on the same rows, goes on where it was, and moves no champion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace import tune
from headrace.declaration import LineSpec, TuneSpec
from headrace.errors import DeclarationError, InputError
from headrace.launch import run_errand
from headrace.line.races import Races
from headrace.settings import find_line
from tests.contract.written_line import Line

SPACE = {"embedding_learning_rate": (0.05, 0.5), "hidden": ((2,), (4,), (8,))}
# nothing is learned by the model as it is: whatever is tried beats it
FROZEN = {"dense_learning_rate": 1e-9, "embedding_learning_rate": 1e-9, "ftrl_alpha": 1e-9}


def declared(given: Line, model: dict[str, float], space: dict[str, list[object]]) -> Line:
    """The line with another model and a search, as another process would read it."""
    raw = json.loads(given.spec.model_dump_json(exclude_unset=True))
    raw["model"] |= model
    raw["tune"] = {"space": space, "trials": 4}
    path = given.settings.lines_dir / "tiny.yaml"
    path.write_text(json.dumps(raw))  # JSON is YAML
    return Line(given.settings, find_line(given.settings, "tiny"))


def test_a_space_is_drawn_by_the_seed_and_each_point_once():
    spec = TuneSpec(space=SPACE, trials=4)
    drawn = tune.combinations(spec, seed=3)
    assert len({json.dumps(one) for one in drawn}) == 4
    assert drawn == tune.combinations(spec, seed=3)
    assert drawn != tune.combinations(spec, seed=4)
    every = tune.combinations(TuneSpec(space=SPACE, trials=6), seed=3)
    assert len({json.dumps(one) for one in every}) == 6
    assert set(every[0]) == set(SPACE)


def test_halving_keeps_the_better_and_the_model_as_it_is(line: Line) -> None:
    line = declared(line, {}, {"embedding_learning_rate": [0.01, 0.05, 0.2, 0.5]})
    settings, spec, before = line.settings, line.spec, line.champion
    handles = tune.begin(settings, spec, "s1")
    assert handles == [f"s1.0.{trial}" for trial in range(5)]
    plan = tune.read_plan(settings, spec, "s1")
    assert (plan.from_tick, plan.split, plan.head, plan.trials[0]) == (0, 34, 40, {})
    line.tick(2)  # what comes later changes nothing of a search that has begun
    assert tune.begin(settings, spec, "s1") == handles
    tried = [tune.attempt(settings, spec, handle) for handle in handles]
    folder = line.home / "tune" / "s1"
    losses = [json.loads((folder / f"rung-0/{n}.json").read_text())["logloss"] for n in range(5)]
    written = (folder / "rung-0/1.json").stat().st_mtime_ns
    assert tune.attempt(settings, spec, handles[1]) == handles[1]
    assert (folder / "rung-0/1.json").stat().st_mtime_ns == written
    kept = tune.halve(settings, spec, tried)
    best = sorted(sorted(range(1, 5), key=lambda n: losses[n])[:2])
    assert kept == ["s1.1.0", *(f"s1.1.{n}" for n in best)]
    rows = [json.loads((folder / f"rung-0/{n}.json").read_text())["rows"] for n in range(5)]
    tune.attempt(settings, spec, kept[0])
    assert len(set(rows)) == 1
    assert json.loads((folder / "rung-1/0.json").read_text())["rows"] > rows[0]
    assert line.champion == before


def test_the_best_races_in_shadow_only_if_it_is_better(line: Line) -> None:
    line = declared(line, FROZEN, {"embedding_learning_rate": [1e-9]})
    settings, spec = line.settings, line.spec
    tried = [tune.attempt(settings, spec, one) for one in tune.begin(settings, spec, "same")]
    same = tune.conclude(settings, spec, tried)
    assert (same.version, same.low, same.high) == (None, 0.0, 0.0)
    assert Races(line.store).running() is None

    line = declared(line, FROZEN, {"ftrl_alpha": [0.3]})
    settings, spec = line.settings, line.spec
    tried = [tune.attempt(settings, spec, one) for one in tune.begin(settings, spec, "better")]
    found = tune.conclude(settings, spec, tried)
    assert found.high < 0
    assert found.version is not None
    raced = Races(line.store).running()
    assert raced is not None
    arm = raced[1].arm(tune.ARM)
    assert arm is not None
    assert (arm.version, arm.mode, arm.follow) == (found.version, "shadow", True)
    assert arm.model == {"ftrl_alpha": 0.3}
    assert line.champion == "v000001"
    assert tune.conclude(settings, spec, tried) == found == tune.found(settings, spec, "better")


@pytest.mark.parametrize(
    ("name", "change", "error", "said"),
    [
        ("s", {"tune": None}, DeclarationError, r"declares no search; add `tune"),
        ("A b", {}, InputError, r"name='A b' is no name of a search"),
        ("s", {"tune": {"space": {"hiden": [[2]]}}}, InputError, r"hiden: Extra inputs"),
    ],
)
def test_what_cannot_be_searched_is_said(line: Line, name, change, error, said) -> None:
    spec = declared(line, {}, {"embedding_dim": [4]}).spec
    spec = LineSpec.model_validate(json.loads(spec.model_dump_json(exclude_unset=True)) | change)
    with pytest.raises(error, match=said):
        tune.begin(line.settings, spec, name)


def test_a_handle_of_another_kind_is_refused(line: Line) -> None:
    with pytest.raises(InputError, match="no trial's handle"):
        tune.attempt(line.settings, line.spec, "s1.9.0")


@pytest.mark.e2e
def test_the_pipeline_fans_out_halves_twice_and_concludes(line: Line) -> None:
    line = declared(line, FROZEN, {"ftrl_alpha": [0.05, 0.1, 0.2, 0.3]})
    ended = run_errand(line.settings, "tune", "tiny", {"name": "whole"})
    folder = line.home / "tune" / "whole"
    assert [len(list((folder / f"rung-{n}").glob("*.json"))) for n in range(3)] == [5, 3, 2]
    found = tune.found(line.settings, line.spec, "whole")
    assert found is not None
    assert found.version is not None
    assert ended.log is not None
    assert f"version='{found.version}'" in Path(ended.log).read_text()
