"""Drift is told where there is some, and hardly ever where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import alarms, change, drift, turns
from headrace.declaration import LineSpec
from headrace.declaration.duty import DriftSpec
from headrace.errors import InputError
from headrace.settings import load_settings
from tests.unit.test_baseline import rows as some_rows
from tests.unit.test_quality import ROWS, spec

__all__ = ["spec"]


def mean_losses(draw: np.random.Generator, size: int, rate: float = 0.1) -> np.ndarray:
    """Means of 50 log losses of calibrated scores: skewed, as losses are."""
    scores = np.clip(draw.beta(2, 2 / rate - 2, (size, drift.BATCH)), 1e-3, 1)
    labels = draw.random(scores.shape) < scores
    return -np.where(labels, np.log(scores), np.log1p(-scores)).mean(axis=1)


def test_without_drift_alarms_are_as_rare_as_asked_for() -> None:
    draw = np.random.default_rng(1)
    runs, length, rate = 400, 100, 1e-4
    told = [
        change.risen(mean_losses(draw, 200), mean_losses(draw, length), rate).at is not None
        for _ in range(runs)
    ]
    assert np.mean(told) < 0.02  # 100 values at 1e-4 each make 0.01


@pytest.mark.parametrize(("deviations", "within"), [(0.5, 120), (1.0, 45), (3.0, 15)])
def test_a_rise_is_told_soon(deviations: float, within: int) -> None:
    draw = np.random.default_rng(2)
    late = []
    for _ in range(50):
        reference = draw.normal(0.3, 0.05, 500)
        values = draw.normal(0.3 + deviations * 0.05, 0.05, 300)
        found = change.risen(reference, values, 1e-4)
        assert found.at is not None
        late.append(found.at)
    assert np.median(late) < within


def test_the_walk_is_that_of_the_formula() -> None:
    draw = np.random.default_rng(3)
    reference, values = draw.normal(size=50), draw.normal(size=200)
    walk = lowest = largest = 0.0
    for value in (values - reference.mean()) / reference.std(ddof=1):
        walk += value - change.ALLOWED
        lowest = min(lowest, walk)
        largest = max(largest, walk - lowest)
    assert change.risen(reference, values, 0.01).statistic == pytest.approx(largest)


def test_too_little_says_nothing() -> None:
    assert change.risen(np.ones(10), np.full(50, 9.0), 0.01).at is None
    assert change.risen(np.ones(50), np.full(50, 9.0), 0.01).at is None
    with pytest.raises(InputError, match="false_alarms 0: give a rate"):
        change.threshold(0)


def scored(spec: LineSpec, seed: int, rate: float = 0.1, **given: Any) -> pa.Table:
    draw = np.random.default_rng([seed, 9])
    scores = draw.beta(2, 18, ROWS)
    labels = (draw.random(ROWS) < scores * rate / 0.1).astype("int8")
    return some_rows(spec, seed, label=labels, **({"score": scores} | given))


def seen(spec: LineSpec, **given: Any) -> drift.Drift:
    past = pa.concat_tables([scored(spec, n) for n in range(20)]).combine_chunks()
    window = pa.concat_tables([scored(spec, n, **given) for n in range(30, 33)]).combine_chunks()
    return drift.compare(spec, past, window)


def test_a_window_like_the_past_leads_to_nothing(spec: LineSpec) -> None:
    found = seen(spec)
    assert (found.drifted, found.outcome) == ({}, "none")
    assert {"score", "item_ctr_1m", "user"} <= set(found.figures)
    assert found.figures["user"]["ks"] is None
    assert found.figures["score"]["ks"] < 0.1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"item_ctr_1m": np.linspace(0.2, 0.6, ROWS)}, "inputs"),
        ({"score": np.linspace(0.2, 0.6, ROWS)}, "score"),
        ({"rate": 0.4}, "concept"),
    ],
)
def test_each_kind_of_drift_leads_to_what_is_declared(
    spec: LineSpec, given: dict[str, Any], kind: str
) -> None:
    stern = DriftSpec.model_validate({kind: "freeze", "window": "1h"})
    found = seen(spec.model_copy(update={"drift": stern}), **given)
    assert kind in found.drifted
    assert found.outcome == "freeze"
    assert seen(spec, **given).outcome == "alarm"


def test_drift_is_told_once_and_a_frozen_line_learns_nothing(
    spec: LineSpec, tmp_path: Path
) -> None:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    home = settings.line_home(spec.line)
    found = drift.Drift(3, 9, 100, 900, drifted={"concept": ["log loss rose"]}, outcome="freeze")
    for _ in range(2):
        drift.act(settings, spec, found)
    (alarm,) = alarms.alarms(settings, spec.line)
    assert (alarm["kind"], alarm["outcome"], alarm["ticks"]) == ("drift", "freeze", [3, 9])
    assert turns.held(home) == turns.frozen(home) == "drift: log loss rose"
    turns.thaw(home)
    assert turns.held(home) is None
    drift.act(settings, spec, drift.Drift(9, 12, 100, 900))
    drift.act(settings, spec, found)
    assert len(alarms.alarms(settings, spec.line)) == 2
