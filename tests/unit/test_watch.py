"""The guard's claims: silent while a champion keeps its promise, loud when it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace import metrics
from headrace.declaration import GuardSpec, ModelGateSpec
from headrace.watch import Live, Watched, watch

GUARD, GATE = GuardSpec(alpha=0.05), ModelGateSpec()
LOOKS = [100, 150, 250, 400, 700, 1_200, 2_000]
ROWS = 3


def world(rng: np.random.Generator, requests: int, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    """Log odds, (requests · ROWS,), and clicks drawn from them."""
    logit = rng.normal(-2.2, 1, requests * ROWS) + np.repeat(rng.normal(0, 0.4, requests), ROWS)
    logit += shift
    return logit, (rng.random(logit.size) < 1 / (1 + np.exp(-logit))).astype(np.int8)


def scores(rng: np.random.Generator, logit: np.ndarray, noise: float = 0.3) -> np.ndarray:
    return 1 / (1 + np.exp(-(logit + rng.normal(0, noise, logit.size))))


def promised(rng: np.random.Generator, requests: int = 300) -> dict[str, Any]:
    logit, labels = world(rng, requests)
    given = scores(rng, logit)
    losses = metrics.row_losses(labels, given)
    return {
        "rows": labels.size,
        "candidate_logloss": losses.mean(),
        "candidate_logloss_error": losses.std() / losses.size**0.5,
        "score_deciles": np.quantile(given, np.linspace(0.1, 0.9, 9)).tolist(),
    }


def live(rng: np.random.Generator, requests: int, shift: float = 0.0, noise: float = 0.3) -> Live:
    logit, labels = world(rng, requests, shift)
    given = scores(rng, logit, noise)
    codes = np.repeat(np.arange(requests), ROWS)
    return Live(codes, labels, given, given, requests, scores(rng, logit))


def until(found: Live, requests: int) -> Live:
    rows = slice(0, requests * ROWS)
    return replace(
        found,
        requests=found.requests[rows],
        labels=found.labels[rows],
        scores=found.scores[rows],
        scored=found.scored[rows],
        scored_requests=requests,
        previous=None if found.previous is None else found.previous[rows],
    )


def judged(found: Live, evidence: dict[str, Any] | None) -> Watched:
    return watch(GUARD, GATE, evidence, found)


def test_without_drift_at_most_one_window_in_twenty_gives_a_false_alarm_however_often_watched():
    false = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        evidence, seen = promised(rng), live(rng, LOOKS[-1])
        false += any(judged(until(seen, look), evidence).breaches for look in LOOKS)
    assert false <= 0.05 * 200


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (lambda s, _rng: 1 - s, "logloss_as_promised"),
        (lambda s, _rng: np.clip(4 * s, 0, 0.99), "calibrated"),
        (lambda s, _rng: s / 4, "calibrated"),
        (lambda s, _rng: np.full_like(s, 0.02), "scores_as_promised"),
        (lambda s, rng: rng.permutation(s), "no_worse_than_previous"),
    ],
)
def test_a_broken_champion_is_told_by_its_claim_and_a_rollback_helps(change, claim):
    rng = np.random.default_rng(5)
    evidence, seen = promised(rng), live(rng, 1_500)
    broken = change(seen.scores, rng)
    watched = judged(replace(seen, scores=broken, scored=broken), evidence)
    assert claim in [breach.split(":")[0] for breach in watched.breaches]
    assert watched.rollback_helps
    assert watched.gain is not None
    assert watched.gain > 0


def test_scores_tell_before_any_label_does():
    rng = np.random.default_rng(5)
    evidence, seen = promised(rng), live(rng, 400)
    early = replace(until(seen, 0), scored=np.full(1_200, 0.5), scored_requests=400, previous=None)
    (breach,) = judged(early, evidence).breaches
    assert breach.startswith("scores_as_promised: their distribution moved by 0.")


def test_a_world_that_changed_is_told_but_an_older_model_is_no_remedy():
    rng = np.random.default_rng(7)
    evidence, seen = promised(rng), live(rng, 2_000)
    taken = (rng.random(seen.labels.size) < 0.6).astype(np.int8)  # whatever is shown is clicked
    watched = judged(replace(seen, labels=taken, previous=seen.scores * 0.9), evidence)
    assert {breach.split(":")[0] for breach in watched.breaches} >= {
        "logloss_as_promised", "calibrated",
    }  # fmt: skip
    assert not watched.rollback_helps


def test_without_evidence_calibration_and_the_previous_version_still_speak():
    rng = np.random.default_rng(9)
    seen = live(rng, 1_500)
    assert judged(seen, None).breaches == ()
    bad = judged(replace(seen, scores=rng.permutation(seen.scores)), None)
    assert [breach.split(":")[0] for breach in bad.breaches] == ["no_worse_than_previous"]
    assert judged(replace(seen, previous=None), None).gain is None


def test_too_few_requests_say_nothing():
    rng = np.random.default_rng(5)
    evidence, seen = promised(rng), until(live(rng, 200), GUARD.min_requests - 1)
    assert (
        judged(replace(seen, scores=1 - seen.scores, scored=1 - seen.scores), evidence).breaches
        == ()
    )
    nothing = judged(until(seen, 0), evidence)
    assert (nothing.rows, nothing.breaches, nothing.score_shift) == (0, (), None)
    assert np.isnan(nothing.logloss)


def test_scores_that_many_rows_share_are_no_shift():
    """Half of the evidence's deciles are one number: any share below it is as promised."""
    rng = np.random.default_rng(3)
    evidence = promised(rng) | {"score_deciles": [0.1] * 5 + [0.2, 0.3, 0.4, 0.5]}
    same = np.concatenate([np.full(500, 0.1), np.linspace(0.1, 0.6, 500)])
    seen = replace(live(rng, 300), scored=same, scored_requests=500)
    assert judged(seen, evidence).score_shift == pytest.approx(0, abs=0.12)
