"""Each claim rejects what it must, and whatever is missing rejects."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from headrace import gates, metrics
from headrace.declaration import ModelGateSpec
from headrace.gates import Evidence, TaskEvidence, Verdict, claims

NOW_US = 1_000_000_000_000
GATE = ModelGateSpec(min_rows=100, max_logloss_increase=0.02, calibration=(0.5, 2.0))
GOOD = Evidence(
    line="coupons",
    candidate="v000002",
    parent="v000001",
    champion="v000001",
    train_from_tick=10,
    train_to_tick=20,
    champion_to_tick=10,
    eval_from_tick=20,
    eval_to_tick=25,
    rows=400,
    candidate_logloss=0.30,
    champion_logloss=0.31,
    logloss_diff_low=-0.03,
    logloss_diff_high=0.01,
    calibration=1.1,
    calibration_low=0.8,
    calibration_high=1.6,
    auc=0.7,
    finite=True,
    parity_rows=400,
    parity_expected=400,
    parity_mismatches=0,
    parity_causes={},
    parity_history="parts",
    data_passed=True,
    eval_rows_plausible=True,
    made_at_us=NOW_US - 1_000_000,
    champion_auc=0.69,
    auc_diff_low=-0.03,
    auc_diff_high=0.05,
    score_shift=0.1,
    importance={"user": 0.02, "item": 0.03},
)
STEP = replace(GOOD, update_norm=3.0, update_norm_usual=1.0, audited_at_us=NOW_US - 20_000_000)
OF_A_STEP = ("update_norm", "update_norm_usual", "audited_at_us")
TOLD = (
    *OF_A_STEP,
    *("parent", "auc", "train_from_tick", "parity_causes", "tasks"),
    *("candidate_logloss_error", "score_deciles"),
    *("champion_auc", "auc_diff_low", "ks", "slices", "predict_us", "bytes"),
)
CONVERSIONS = TaskEvidence(
    rows=300,
    positives=30,
    candidate_logloss=0.10,
    champion_logloss=0.11,
    logloss_diff_low=-0.02,
    logloss_diff_high=0.01,
    calibration=1.2,
    calibration_low=0.7,
    calibration_high=1.9,
    auc=0.8,
)
JUDGED = [f.name for f in fields(Evidence) if f.name not in TOLD]


def judged(evidence: Evidence | None, **other: Any) -> Verdict:
    expected = {"line": "coupons", "candidate": "v000002", "champion": "v000001"} | other
    return gates.judge(GATE, evidence, now_us=NOW_US, **expected)


def judged_step(evidence: Evidence) -> Verdict:
    return gates.judge_step(
        GATE,
        evidence,
        now_us=NOW_US,
        line="coupons",
        champion="v000001",
        max_audit_age_us=60_000_000,
    )


def test_a_sound_step_passes() -> None:
    assert judged_step(STEP) == Verdict(True, ())


@pytest.mark.parametrize("name", [*(n for n in JUDGED if n != "importance"), *OF_A_STEP])
def test_a_missing_figure_rejects_a_step(name: str) -> None:
    assert not judged_step(replace(STEP, **{name: None})).passed


def test_an_update_of_an_unusual_size_blames_its_window() -> None:
    for norm in (10.1, math.nan, math.inf):
        verdict = judged_step(replace(STEP, update_norm=norm))
        assert (verdict.failed, verdict.blames_window) == (("update_norm_usual",), True)
    assert judged_step(replace(STEP, update_norm=10.0)).passed


def test_an_old_audit_rejects_and_blames_nothing() -> None:
    verdict = judged_step(replace(STEP, audited_at_us=NOW_US - 62_000_000))
    assert (verdict.failed, verdict.blames_window) == (("audit_fresh",), False)


def test_sound_evidence_passes() -> None:
    assert judged(GOOD) == Verdict(True, ())


def test_no_evidence_rejects() -> None:
    assert not judged(None).passed


@pytest.mark.parametrize("name", JUDGED)
def test_a_missing_figure_rejects(name: str) -> None:
    assert not judged(replace(GOOD, **{name: None})).passed


@pytest.mark.parametrize("name", [n for n in JUDGED if isinstance(getattr(GOOD, n), float)])
def test_a_nan_figure_rejects(name: str) -> None:
    assert not judged(replace(GOOD, **{name: math.nan})).passed


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"line": "news"}, "evidence_is_for_these_versions"),
        ({"candidate": "v000009"}, "evidence_is_for_these_versions"),
        ({"champion": "prior"}, "evidence_is_for_these_versions"),
        ({"parent": "v000000"}, "descends_from_champion"),
        ({"made_at_us": NOW_US - 601_000_000}, "evidence_fresh"),
        ({"made_at_us": NOW_US + 1}, "evidence_fresh"),
        ({"data_passed": False}, "data_gate_passed"),
        ({"eval_from_tick": 19}, "evaluated_on_later_rows"),
        ({"champion_to_tick": 21}, "evaluated_on_later_rows"),
        ({"rows": 99}, "enough_rows"),
        ({"eval_rows_plausible": False}, "evaluation_rows_plausible"),
        ({"finite": False}, "weights_finite"),
        ({"parity_mismatches": 1}, "parity_holds"),
        ({"parity_rows": 399}, "parity_holds"),
        ({"candidate_logloss": 0.34}, "logloss_not_worse"),
        (
            {"candidate_logloss": 0.32, "logloss_diff_low": 0.001, "logloss_diff_high": 0.03},
            "logloss_not_worse",
        ),
        (
            {"calibration": 4.0, "calibration_low": 2.1, "calibration_high": 6.0},
            "calibration_within",
        ),
        (
            {"calibration": 0.2, "calibration_low": 0.1, "calibration_high": 0.4},
            "calibration_within",
        ),
    ],
)
def test_each_claim_names_itself(change: dict[str, Any], claim: str) -> None:
    verdict = judged(replace(GOOD, **change))
    assert not verdict.passed
    assert verdict.failed == (claim,)
    assert verdict.reasons[0].startswith(f"{claim}: ")


def of_two_tasks(**changes: Any) -> Evidence:
    conversions = replace(CONVERSIONS, **changes)
    return replace(GOOD, tasks={"click_and_conversion": conversions, "conversion": TaskEvidence()})


@pytest.mark.parametrize(
    ("change", "claim", "blamed"),
    [
        ({"rows": None}, "conversions_measured", False),
        ({"positives": None}, "conversions_measured", False),
        ({"candidate_logloss": 0.2}, "conversion_logloss_not_worse", True),
        ({"candidate_logloss": None}, "conversion_logloss_not_worse", True),
        ({"logloss_diff_low": math.nan}, "conversion_logloss_not_worse", True),
        ({"calibration_low": 2.1}, "conversion_calibration_within", False),
        ({"calibration": None}, "conversion_calibration_within", False),
    ],
)
def test_conversions_are_judged_like_clicks(
    change: dict[str, Any], claim: str, blamed: bool
) -> None:
    verdict = judged(of_two_tasks(**change), converts=True)
    assert (verdict.failed, verdict.blames_window) == ((claim,), blamed)
    assert judged(of_two_tasks(**change)).passed  # a line without conversions


def test_conversions_are_not_judged_by_a_handful() -> None:
    assert judged(of_two_tasks(), converts=True) == Verdict(True, ())
    few = of_two_tasks(positives=19, candidate_logloss=9.0, calibration=9.0, calibration_low=9.0)
    assert judged(few, converts=True).passed
    assert judged(GOOD, converts=True).failed == ("conversions_measured",)


def test_evidence_of_two_tasks_survives_json() -> None:
    evidence = of_two_tasks()
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    assert "tasks" not in GOOD.to_dict()
    unknown = of_two_tasks(auc=math.nan).to_dict()
    assert unknown["tasks"]["click_and_conversion"]["auc"] is None


def test_a_full_candidate_needs_no_parent() -> None:
    assert judged(replace(GOOD, parent=None)).passed


def test_a_bootstrapped_line_has_no_served_rows_to_compare() -> None:
    assert judged(replace(GOOD, parity_rows=0, parity_expected=0)).passed


def test_a_parity_mismatch_is_told_with_its_cause() -> None:
    verdict = judged(replace(GOOD, parity_mismatches=3, parity_causes={"late_push": 3}))
    assert verdict.reasons == ("parity_holds: 3 mismatches in 400 rows (3 late_push), must be 0",)


def test_evidence_survives_json_with_nan_as_missing() -> None:
    stored = json.loads(json.dumps(GOOD.to_dict()))
    assert Evidence.from_dict(stored) == GOOD
    broken = replace(GOOD, candidate_logloss=math.nan)
    assert Evidence.from_dict(json.loads(json.dumps(broken.to_dict()))).candidate_logloss is None


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        ({"candidate_logloss": 0.4, "logloss_diff_low": 0.05, "logloss_diff_high": 0.12}, True),
        ({"finite": False, "candidate_logloss": None}, True),
        ({"rows": 3}, False),
        ({"rows": 3, "candidate_logloss": 0.4}, False),
        ({"eval_rows_plausible": False, "candidate_logloss": 0.4}, False),
        ({"calibration": 3.0, "calibration_low": 2.5, "calibration_high": 4.0}, False),
    ],
)
def test_a_window_is_blamed_only_for_a_worse_model(change: dict[str, Any], blamed: bool) -> None:
    verdict = judged(replace(GOOD, **change))
    assert not verdict.passed
    assert verdict.blames_window is blamed


def measured(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray) -> Evidence:
    loss, rival = metrics.row_losses(labels, candidate), metrics.row_losses(labels, champion)
    _, low, high = metrics.paired_bootstrap(loss, rival, 0.95)
    return replace(
        GOOD,
        candidate_logloss=float(loss.mean()),
        champion_logloss=float(rival.mean()),
        logloss_diff_low=low,
        logloss_diff_high=high,
    )


def test_few_hundred_rows_let_good_candidates_through_and_stop_flipped_ones() -> None:
    generator = np.random.default_rng(5)
    good = flipped = 0
    for _ in range(100):
        truth = np.clip(generator.beta(1, 9, 300), 0.01, 0.9)
        labels = (generator.random(300) < truth).astype(int)
        champion = np.clip(truth * generator.lognormal(0, 0.30, 300), 0.005, 0.95)
        candidate = np.clip(truth * generator.lognormal(0, 0.25, 300), 0.005, 0.95)
        poisoned = np.clip(champion + 0.25 * (1 - 2 * champion), 0.005, 0.95)
        good += claims.logloss_not_worse(measured(labels, candidate, champion), 0.02) is None
        flipped += claims.logloss_not_worse(measured(labels, poisoned, champion), 0.02) is None
    assert good >= 95
    assert flipped == 0


def test_rows_without_a_click_reject_and_blame_nothing() -> None:
    lossy = replace(GOOD, calibration=math.nan, candidate_logloss=0.32)
    verdict = judged(lossy)
    assert (verdict.failed, verdict.blames_window) == (("calibration_within",), False)
    off = replace(lossy, calibration=3.0, calibration_low=2.5)
    assert judged(off).blames_window
