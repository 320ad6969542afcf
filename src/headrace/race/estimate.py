"""Off-policy estimates: what a policy would have earned, from rows that another one served.

All take one entry a row, shape (n,). `rewards`: what the served action earned. `propensities`:
the probability with which the row's action was drawn when it was served, in (0, 1]. `targets`: the
probability with which the judged policy draws that same action, 0 where it never would.
`groups`: int codes of what was drawn together, such as requests (rows of one group are not
independent, and the standard error is that of group sums); None: each row is its own.

The standard errors are those of the influence functions, and the intervals normal ones; both are
of a fixed number of rows, so do not stop a race by them (`sequential` is for that).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean reward with its standard error and two-sided interval; NaN where rows do not tell.

    `effective_rows` is Kish's (Σw)²/Σw²: so many rows of the policy's own would tell as much.
    """

    value: float
    error: float
    low: float
    high: float
    rows: int
    effective_rows: float


def ips(
    rewards: ArrayLike,
    propensities: ArrayLike,
    targets: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Inverse propensity scoring, mean(w·r) with w = target/propensity (Horvitz, Thompson 1952).

    Unbiased where every action that the policy would draw could have been served.
    """
    r, w = _weighted(rewards, propensities, targets)
    value = _mean(w * r)
    return _estimate(value, w * r - value, w, groups, confidence)


def snips(
    rewards: ArrayLike,
    propensities: ArrayLike,
    targets: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Self-normalised IPS, Σw·r / Σw (Swaminathan, Joachims 2015): a little bias, less variance.

    Stays within the range of the rewards. NaN when the policy would have served none of the rows.
    """
    r, w = _weighted(rewards, propensities, targets)
    total = float(w.sum())
    if total <= 0:
        return _unknown(len(r))
    value = float((w * r).sum()) / total
    return _estimate(value, w * (r - value) * (len(r) / total), w, groups, confidence)


def doubly_robust(
    rewards: ArrayLike,
    propensities: ArrayLike,
    targets: ArrayLike,
    expected_served: ArrayLike,
    expected_target: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Doubly robust, mean(q(π) + w·(r − q(a))) (Dudík, Langford, Li 2011).

    expected_served: a model's expected reward of the served action. expected_target: the mean of
    the model's expected rewards under the judged policy. Unbiased when either the propensities or
    the model are right; the model must not have learned these rows.
    """
    r, w = _weighted(rewards, propensities, targets)
    served, target = _column(expected_served, len(r)), _column(expected_target, len(r))
    terms = target + w * (r - served)
    value = _mean(terms)
    return _estimate(value, terms - value, w, groups, confidence)


def _weighted(
    rewards: ArrayLike, propensities: ArrayLike, targets: ArrayLike
) -> tuple[Floats, Floats]:
    r = np.asarray(rewards, dtype=np.float64)
    p, t = _column(propensities, r.size), _column(targets, r.size)
    if r.size and not ((p > 0) & (p <= 1)).all():
        bad = p[~((p > 0) & (p <= 1))][0]
        raise InputError(f"propensity {bad} is no probability of a served row; log it in (0, 1]")
    if r.size and not ((t >= 0) & (t <= 1)).all():
        bad = t[~((t >= 0) & (t <= 1))][0]
        raise InputError(f"target {bad} is no probability; give the policy's own, in [0, 1]")
    return r, t / p


def _column(values: ArrayLike, size: int) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (size,):
        raise InputError(
            f"off-policy estimates need columns of one shape, got {column.shape} beside "
            f"({size},); give one value for each row"
        )
    return column


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _estimate(
    value: float, influence: Floats, weights: Floats, groups: ArrayLike | None, confidence: float
) -> Estimate:
    """`influence`: (n,) with mean 0; the error is that of its mean over independent groups."""
    rows = influence.size
    sums = influence
    if groups is not None:
        _, code = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.bincount(code, weights=influence).astype(np.float64)
    if sums.size < 2 or not np.isfinite(value):
        return _unknown(rows, value)
    variance = float((sums**2).sum()) * sums.size / (sums.size - 1)
    error = variance**0.5 / rows
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    squares = float((weights**2).sum())
    effective = float(weights.sum()) ** 2 / squares if squares else 0.0
    return Estimate(value, error, value - z * error, value + z * error, rows, effective)


def _unknown(rows: int, value: float = float("nan")) -> Estimate:
    nan = float("nan")
    return Estimate(value, nan, nan, nan, rows, 0.0)
