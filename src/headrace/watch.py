"""What a champion does while it serves, against what its evidence promised. Pure.

Each claim returns None while nothing speaks against it and otherwise the reason, with figure and
bound. Unlike a gate's, a claim of the guard stands until it is refuted: the champion passed its
gate, and one that serves must not fall for want of rows. All bounds are confidence sequences, so
the rate of false alarms holds however often one looks (`race.sequential`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace import metrics
from headrace.declaration import GuardSpec, ModelGateSpec
from headrace.race.sequential import Bound, ecdf_width, mixture
from headrace.race.verdict import by_request

Floats = NDArray[np.float64]
CLAIMS: Final = (
    "logloss_as_promised",
    "calibrated",
    "scores_as_promised",
    "no_worse_than_previous",
)


@dataclass(frozen=True)
class Live:
    """Rows that the champion answered since the window began, (n,) each, in the order served.

    `requests`: rising codes. `scored`: scores of rows whose label is still open too, (m,), and
    `scored_requests` of how many requests. `previous`: what the version that a rollback would
    bring back says of the same n rows, None without one.
    """

    requests: NDArray[np.int64]
    labels: NDArray[np.int8]
    scores: Floats
    scored: Floats
    scored_requests: int
    previous: Floats | None


@dataclass(frozen=True)
class Watched:
    """What was seen: figures for people and metrics, the refuted claims, and whether to roll back.

    `gain`: log loss of the champion minus that of the previous version on the same rows, in nats.
    """

    requests: int
    rows: int
    logloss: float
    calibration: float
    score_shift: float | None
    gain: float | None
    breaches: tuple[str, ...]
    rollback_helps: bool


def watch(
    guard: GuardSpec, gate: ModelGateSpec, evidence: Mapping[str, Any] | None, live: Live
) -> Watched:
    """Put the guard's claims to the live rows.

    evidence: of this champion, None where there is none (one promoted by force, say); then only
    calibration and the comparison with the previous version can speak. A rollback helps where the
    previous version is better on the same rows by more than the model gate lets a candidate be
    worse; where both are as bad, the world has changed, and an older model is no remedy.
    """
    alpha = guard.alpha / len(CLAIMS)
    losses = metrics.row_losses(live.labels, live.scores)
    enough = np.unique(live.requests).size >= guard.min_requests
    paired = None
    if live.previous is not None and live.labels.size:
        gain = losses - metrics.row_losses(live.labels, live.previous)
        paired = mixture(by_request(live.requests, gain), alpha)
    shift = _shift(evidence, live.scored)
    claims: list[str | None] = []
    if enough:
        claims.append(_logloss(guard, evidence, mixture(by_request(live.requests, losses), alpha)))
        claims.append(_calibrated(guard.calibration, live, alpha / 2))
        claims.append(None if paired is None else _no_worse(gate, paired))
    if shift is not None and live.scored_requests >= guard.min_requests:
        claims.append(_scores(guard, shift, live.scored_requests, alpha, evidence))
    return Watched(
        requests=int(np.unique(live.requests).size),
        rows=live.labels.size,
        logloss=float(losses.mean()) if losses.size else float("nan"),
        calibration=metrics.calibration(live.labels, live.scores),
        score_shift=shift,
        gain=None if paired is None else paired.mean,
        breaches=tuple(claim for claim in claims if claim is not None),
        rollback_helps=paired is not None and paired.mean > gate.max_logloss_increase,
    )


def _logloss(guard: GuardSpec, evidence: Mapping[str, Any] | None, live: Bound) -> str | None:
    promised, error = (evidence or {}).get("candidate_logloss"), _error(evidence)
    if promised is None:
        return None
    limit = promised + 1.645 * error + guard.max_logloss_increase
    if not live.low > limit:
        return None
    return (
        f"logloss_as_promised: {live.mean:.5f} over {live.n} requests, above {live.low:.5f} at "
        f"every look; promised {promised:.5f}, must stay below {limit:.5f}"
    )


def _calibrated(bounds: tuple[float, float], live: Live, alpha: float) -> str | None:
    """Mean score over mean label within bounds: the sign of E[score − bound · label] tells."""
    labels = live.labels.astype(np.float64)
    low, high = bounds
    over = mixture(by_request(live.requests, live.scores - high * labels), alpha)
    under = mixture(by_request(live.requests, low * labels - live.scores), alpha)
    if not (over.low > 0 or under.low > 0):
        return None
    figure = metrics.calibration(live.labels, live.scores)
    return f"calibrated: {figure:.3f} over {over.n} requests, must be between {low} and {high}"


def _scores(
    guard: GuardSpec, shift: float, requests: int, alpha: float, evidence: Mapping[str, Any] | None
) -> str | None:
    of_evidence = ecdf_width(int((evidence or {}).get("rows") or 0), alpha / 2)
    surely = shift - ecdf_width(requests, alpha / 2) - of_evidence
    if not surely > guard.max_score_shift:
        return None
    return (
        f"scores_as_promised: their distribution moved by {shift:.3f} (surely {surely:.3f}) over "
        f"{requests} requests, must stay below {guard.max_score_shift}"
    )


def _no_worse(gate: ModelGateSpec, paired: Bound) -> str | None:
    if not paired.low > gate.max_logloss_increase:
        return None
    return (
        f"no_worse_than_previous: log loss {paired.mean:+.5f} against the previous version on the "
        f"same rows of {paired.n} requests, above {paired.low:+.5f} at every look; must be at most "
        f"{gate.max_logloss_increase:+.5f}"
    )


def _shift(evidence: Mapping[str, Any] | None, scores: Floats) -> float | None:
    """Largest distance of the two distributions at the evidence's deciles; None without either."""
    deciles = (evidence or {}).get("score_deciles")
    if not deciles or not scores.size:
        return None
    shares = np.searchsorted(np.sort(scores), deciles, side="right") / scores.size
    before = np.searchsorted(np.sort(scores), deciles, side="left") / scores.size
    level = np.linspace(0.1, 0.9, len(deciles))
    # a decile that many scores share lies anywhere between its two ends
    return float(np.maximum(np.maximum(before - level, level - shares), 0.0).max())


def _error(evidence: Mapping[str, Any] | None) -> float:
    return float((evidence or {}).get("candidate_logloss_error") or 0.0)
