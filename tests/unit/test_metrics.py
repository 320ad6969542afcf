"""The figures agree with formulas written out by hand, and say NaN when rows are lacking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import metrics
from headrace.errors import InputError

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9])),
    min_size=1,
    max_size=40,
)


@given(ROWS)
def test_auc_counts_every_pair_and_ties_as_a_half(rows: list[tuple[int, float]]) -> None:
    positives = [p for y, p in rows if y]
    negatives = [p for y, p in rows if not y]
    found = metrics.auc([y for y, _ in rows], [p for _, p in rows])
    if not positives or not negatives:
        assert math.isnan(found)
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in positives for b in negatives)
    assert found == pytest.approx(wins / (len(positives) * len(negatives)))


@given(ROWS)
def test_log_loss_and_ks_agree_with_plain_python(rows: list[tuple[int, float]]) -> None:
    labels, predictions = [y for y, _ in rows], [p for _, p in rows]
    expected = sum(-math.log(p if y else 1 - p) for y, p in rows) / len(rows)
    assert metrics.log_loss(labels, predictions) == pytest.approx(expected)
    positives, negatives = sum(labels), len(labels) - sum(labels)
    found = metrics.ks(labels, predictions)
    if not positives or not negatives:
        assert math.isnan(found)
        return
    gaps = [
        sum(p <= at for y, p in rows if y) / positives
        - sum(p <= at for y, p in rows if not y) / negatives
        for at in predictions
    ]
    assert found == pytest.approx(max(map(abs, gaps)))


def test_a_certain_and_wrong_prediction_costs_much_but_not_infinity() -> None:
    assert metrics.log_loss([0], [1.0]) == pytest.approx(-math.log(1e-7), rel=1e-4)


def test_nan_predictions_stay_nan() -> None:
    labels, predictions = [0, 1], [0.5, math.nan]
    for figure in (metrics.log_loss, metrics.auc, metrics.ks, metrics.calibration):
        assert math.isnan(figure(labels, predictions))
    assert all(map(math.isnan, metrics.paired_bootstrap([0.1, math.nan], [0.1, 0.1])))


def test_no_rows_give_nan() -> None:
    for figure in (metrics.log_loss, metrics.auc, metrics.ks, metrics.calibration):
        assert math.isnan(figure([], []))
    assert all(map(math.isnan, metrics.paired_bootstrap([], [])))
    assert all(map(math.isnan, metrics.calibration_interval([], [])))
    assert all(map(math.isnan, metrics.rate_interval([])))
    assert math.isnan(metrics.psi([], [1.0]))


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2,\) and \(1,\)"):
        metrics.log_loss([0, 1], [0.5])


def test_wilson_interval_of_one_in_ten() -> None:
    low, high = metrics.rate_interval([1] + [0] * 9)
    assert (low, high) == pytest.approx((0.01788, 0.40415), abs=1e-4)  # Wilson 1927, z = 1.96


def test_calibration_interval_holds_the_figure_and_narrows_with_rows() -> None:
    labels, predictions = np.array([1, 0, 0, 0] * 25), np.full(100, 0.5)
    low, high = metrics.calibration_interval(labels, predictions)
    assert low < metrics.calibration(labels, predictions) == 2.0 < high
    narrow = metrics.calibration_interval(np.tile(labels, 100), np.tile(predictions, 100))
    assert low < narrow[0] < 2.0 < narrow[1] < high


def test_psi_is_zero_for_the_same_values_and_grows_with_a_shift() -> None:
    values = np.random.default_rng(0).normal(size=5_000)
    assert metrics.psi(values, values) == pytest.approx(0.0)
    assert 0.05 < metrics.psi(values, values + 0.3) < metrics.psi(values, values + 1.0)
    assert metrics.psi(values, np.full(100, np.nan)) > 5


def test_paired_bootstrap_is_seeded_and_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    common = generator.normal(size=400)
    better = common + generator.normal(-0.1, 0.2, size=400)
    mean, low, high = metrics.paired_bootstrap(better, common, 0.95, seed=3)
    assert low < mean < high < 0
    assert low > -0.14
    assert (mean, low, high) == metrics.paired_bootstrap(better, common, 0.95, seed=3)
    assert metrics.paired_bootstrap(better, common, 0.5, seed=3)[1] > low


def test_paired_bootstrap_in_parts_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(2).random((2, 300))
    whole = metrics.paired_bootstrap(a, b)
    monkeypatch.setattr(metrics, "_CELLS", 3_000)
    assert metrics.paired_bootstrap(a, b) == pytest.approx(whole)


def test_a_burst_of_wrong_labels_shows_in_its_stretch_and_not_in_the_mean() -> None:
    labels = np.random.default_rng(7).random(1000) < 0.15
    labels[420:640] ^= True
    assert labels.mean() < 0.4
    found = metrics.implausible_stretches(labels, (0.01, 0.4), 100)
    assert [first for first, _ in found] == [400, 500]
    assert not metrics.implausible_stretches(labels[:400], (0.01, 0.4), 100)


def test_rows_left_over_join_the_last_stretch() -> None:
    labels = np.r_[np.zeros(100), np.ones(100), np.zeros(50)]
    assert metrics.implausible_stretches(labels, (0.0, 0.4), 100) == [(100, 100 / 150)]
    assert metrics.implausible_stretches(np.ones(3), (0.0, 0.4), 100) == []
