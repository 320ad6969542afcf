"""Slices, shift and importance of a candidate's predictions, and the claims about them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import metrics, suspicion
from headrace.declaration import LineSpec, ModelGateSpec
from headrace.gates import claims
from tests.unit.test_gates import GATE, GOOD, judged
from tests.unit.test_quality import ROWS, spec, window

__all__ = ["spec"]

LABELS = (np.arange(ROWS) % 10 == 0).astype("int8")
HONEST = np.full(ROWS, 0.1)


def sliced(spec: LineSpec, **gate: Any) -> LineSpec:
    gates_of = spec.gates.model_copy(update={"model": spec.gates.model.model_copy(update=gate)})
    return spec.model_copy(update={"gates": gates_of})


def test_a_slice_that_collapses_is_found_behind_a_good_mean(spec: LineSpec) -> None:
    line = sliced(spec, slices=("item_category",))
    category = np.arange(ROWS) // 100
    rows = window(spec, label=LABELS, item_category=category)
    predicted = np.where(category == 2, 0.6, np.where(LABELS == 1, 0.4, 0.05))
    found = suspicion.slices(line, rows, predicted, HONEST)
    assert set(found) == {f"item_category={n}" for n in range(4)}
    assert found["item_category=2"]["rows"] == 100
    evidence = replace(GOOD, slices=found)
    gate = ModelGateSpec(slices=("item_category",))
    reason = claims.no_slice_collapses(evidence, gate)
    assert reason is not None
    assert reason.startswith("no_slice_collapses: item_category=2 and 0 more")
    sound = suspicion.slices(line, rows, HONEST, HONEST)
    assert claims.no_slice_collapses(replace(GOOD, slices=sound), gate) is None
    assert claims.no_slice_collapses(GOOD, gate) is not None
    lost = {"item_category=2": {**found["item_category=2"], "logloss_diff_low": None}}
    assert claims.no_slice_collapses(replace(GOOD, slices=lost), gate) is not None


def test_an_input_that_holds_the_label_explains_all(spec: LineSpec) -> None:
    rows = window(spec, label=LABELS, item_ctr_1m=LABELS.astype(float))

    def leaks(inputs: pa.Table) -> np.ndarray:
        return 0.02 + 0.9 * inputs["item_ctr_1m"].to_numpy()

    found = suspicion.importance(spec, rows, leaks)
    assert max(found, key=lambda name: found[name]) == "item_ctr_1m"
    assert sum(found.values()) == found["item_ctr_1m"] > 1.0
    verdict = judged(replace(GOOD, importance=found))
    assert verdict.failed == ("importance_spread",)
    assert verdict.blames_window
    assert "item_ctr_1m explains 100%" in verdict.reasons[0]
    assert not judged(replace(GOOD, importance={"item": math.nan, "user": 0.1})).passed
    assert judged(replace(GOOD, importance={"item": 0.45, "user": 0.0})).passed


def test_scores_that_moved_are_told_and_not_of_a_new_line() -> None:
    odds = np.linspace(-3, -1, 100)
    low, high = (1 / (1 + np.exp(-each)) for each in (odds, odds + 1.5))
    assert suspicion.shift(low, high) == pytest.approx(1.5)
    assert suspicion.shift(low, low[::-1]) == 0.0
    assert math.isnan(suspicion.shift(low[:0], low[:0]))
    moved = replace(GOOD, score_shift=1.1)
    assert judged(moved).failed == ("scores_near_champion",)
    assert judged(replace(moved, parent=None)).passed
    first = replace(moved, champion="prior", parent=None, auc_diff_high=-0.2)
    assert judged(first, champion="prior").passed


def test_a_candidate_that_surely_ranks_worse_is_refused() -> None:
    assert judged(replace(GOOD, auc_diff_high=-0.021)).failed == ("auc_not_worse",)
    assert judged(replace(GOOD, auc_diff_high=-0.019)).passed


def test_time_and_bytes_are_asked_where_they_are_declared() -> None:
    gate = GATE.model_copy(update={"max_predict_time": 50, "max_bytes": 1_000})
    ok = replace(GOOD, predict_us=49.0, bytes=1_000)
    assert claims.small_and_quick(ok, gate) is None
    for change in ({"predict_us": 51.0}, {"bytes": 1_001}, {"bytes": None}, {"predict_us": None}):
        assert claims.small_and_quick(replace(ok, **change), gate) is not None
    assert claims.small_and_quick(GOOD, GATE) is None


def naive(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair, as DeLong and others write it: 1 where the positive is above, 1/2 at a tie."""
    above = scores[labels > 0][:, None] - scores[labels == 0][None, :]
    pairs = (above > 0) + 0.5 * (above == 0)
    return pairs.mean(axis=1), pairs.mean(axis=0)


def test_the_interval_of_two_aucs_is_delongs() -> None:
    draw = np.random.default_rng(3)
    labels = (draw.random(200) < 0.3).astype(int)
    left = np.round(draw.random(200) + 0.3 * labels, 1)
    right = np.round(draw.random(200) + 0.2 * labels, 1)
    (p_left, n_left), (p_right, n_right) = naive(labels, left), naive(labels, right)
    both = [np.cov(p_left, p_right), np.cov(n_left, n_right)]
    error = sum(
        (c[0, 0] + c[1, 1] - 2 * c[0, 1]) / size
        for c, size in zip(both, (p_left.size, n_left.size), strict=True)
    )
    mean, low, high = metrics.auc_difference(labels, left, right, 0.95)
    assert mean == pytest.approx(p_left.mean() - p_right.mean())
    assert (high - low) / 2 == pytest.approx(1.959964 * error**0.5, rel=1e-6)
    assert metrics.auc_difference([1, 0, 0], [0.9, 0.1, 0.2], [0.1, 0.2, 0.3]) == (1.0, -1.0, 1.0)
    assert math.isnan(metrics.auc_difference([0, 0], [0.1, 0.2], [0.1, 0.2])[0])
