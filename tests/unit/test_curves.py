"""ROC and calibration against what is counted by hand, and against the AUC of their own area."""

from __future__ import annotations

import numpy as np
import pytest

from headrace import metrics
from headrace.curves import calibration_bins, calibration_page, roc


def test_a_curve_of_five_rows_counted_by_hand():
    curve = roc([1, 0, 1, 0, 0], [0.9, 0.8, 0.8, 0.3, 0.1])
    assert curve is not None
    np.testing.assert_allclose(curve.threshold, [1.9, 0.9, 0.8, 0.3, 0.1])
    np.testing.assert_allclose(curve.true_positive_rate, [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(curve.false_positive_rate, [0, 0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_below_the_whole_curve_is_the_auc_and_thinning_keeps_its_ends(ties):
    rng = np.random.default_rng(3)
    p = rng.random(500)
    p = p.round(1) if ties else p
    y = rng.random(500) < p
    whole, thin = roc(y, p, points=10_000), roc(y, p, points=20)
    assert whole is not None
    assert thin is not None
    area = np.trapezoid(whole.true_positive_rate, whole.false_positive_rate)
    assert area == pytest.approx(metrics.auc(y, p), abs=1e-12)
    assert thin.threshold.size <= 21
    for curve in (whole, thin):
        ends = (curve.false_positive_rate[[0, -1]], curve.true_positive_rate[[0, -1]])
        assert [end.tolist() for end in ends] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("y", "p"), [([1, 1], [0.1, 0.2]), ([], []), ([0, 1], [0.1, np.nan])])
def test_what_has_no_curve_has_none(y, p):
    assert roc(y, p) is None


def test_bins_hold_every_row_once_in_order_of_prediction():
    p = np.linspace(0.01, 0.99, 25)
    found = calibration_bins(np.arange(25) % 2, p, bins=4)
    assert [one.rows for one in found] == [7, 6, 6, 6]
    assert [one.predicted for one in found] == sorted(one.predicted for one in found)
    assert sum(one.rows * one.observed for one in found) == 12
    assert len(calibration_bins([1, 0], [0.5, 0.6])) == 2
    assert calibration_bins([], []) == []


def test_the_page_shows_every_bin_and_the_figures():
    page = calibration_page("coupons v000007", [0, 1, 0, 1], [0.2, 0.4, 0.1, 0.8])
    assert page.count("<tr><td>1<td>") == 4
    assert "<td>1<td>0.8000<td>1.0000" in page
    assert "mean prediction over label rate 0.750, AUC 1.0000" in page
