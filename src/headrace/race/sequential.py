"""Bounds of a mean that hold at every look at once, so that a race may be watched and stopped.

An interval of a fixed sample, looked at again and again, excludes the truth sooner or later
(Johari et al. 2017 call it peeking). A confidence sequence does so with probability `alpha` at
most, over all looks of an endless race (Howard, Ramdas, McAuliffe, Sekhon 2021).

Observations are (n,) in the order in which they became known, one for each independent unit (a
request, say: sum or average its rows first); their means may drift, and then it is the running
mean of the means that is bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.errors import InputError

Floats = NDArray[np.float64]
_CAP: Final = 0.5  # of the bets λ; any value in (0, 1) is valid


@dataclass(frozen=True)
class Bound:
    """The running mean of n observations and what bounds it at this and every other look.

    `low` and `high` hold each with probability 1 − alpha: one-sided bounds, so both together hold
    with 1 − 2·alpha. `p_above`, `p_below`: always-valid p-values of "the mean is at most 0", "at
    least 0", against above and below. NaN bounds stand for too few observations to tell.
    """

    n: int
    mean: float
    low: float
    high: float
    p_above: float
    p_below: float


def mixture(observations: ArrayLike, alpha: float = 0.05, tightest_at: int = 1_000) -> Bound:
    """Asymptotic confidence sequence by a normal mixture, at the newest look.

    Robbins' mixture martingale with the running variance (Waudby-Smith et al., "Time-uniform
    central limit theory and asymptotic confidence sequences", 2024; with a known variance it is
    the mSPRT of Johari et al. 2017). Needs finite variance, not bounded values, and its rate
    holds in the limit: wait for some hundreds of observations before the first decision.
    `tightest_at`: number of observations at which the bound is narrowest.
    """
    x = _checked(observations, alpha)
    n = x.size
    mean = float(x.mean()) if n else math.nan
    deviation = float(x.std()) if n > 1 else math.nan
    if n < 2 or not math.isfinite(mean):
        return Bound(n, mean, math.nan, math.nan, 1.0, 1.0)
    if deviation == 0:  # equal observations, such as two models that are one
        settled = 1.0 if mean == 0 else math.nan
        return Bound(n, mean, mean, mean, settled, settled) if mean == 0 else _unknown(n, mean)
    rho2 = mixing_variance(alpha, tightest_at)
    spread = n * rho2 + 1
    half = deviation * math.sqrt(
        2 * spread / (n * n * rho2) * math.log1p(math.sqrt(spread) / (2 * alpha))
    )
    total = mean * n / deviation
    return Bound(
        n,
        mean,
        mean - half,
        mean + half,
        _p_value(total, spread, rho2),
        _p_value(-total, spread, rho2),
    )


def bounded(
    observations: ArrayLike, alpha: float = 0.05, span: tuple[float, float] = (0.0, 1.0)
) -> Bound:
    """Confidence sequence of values within `span`, valid for every n, at the newest look.

    Predictable plug-in empirical Bernstein (Waudby-Smith, Ramdas, "Estimating means of bounded
    random variables by betting", 2024, theorem 2). Wider than `mixture`, and owes nothing to a
    limit theorem. Its p-values are 1 until a bound excludes 0, then alpha.
    """
    x = _checked(observations, alpha)
    low, high = span
    if x.size and not ((x >= low) & (x <= high)).all():
        raise InputError(f"an observation lies outside of {span}; give the span of the values")
    if not x.size:
        return _unknown(0, math.nan)
    scaled = (x - low) / (high - low)
    n = np.arange(1, x.size + 1)
    mean = (0.5 + np.cumsum(scaled)) / (n + 1)
    variance = (0.25 + np.cumsum((scaled - mean) ** 2)) / (n + 1)
    before_mean = np.concatenate([[0.5], mean[:-1]])
    before_variance = np.concatenate([[0.25], variance[:-1]])
    log_alpha = math.log(1 / alpha)
    bet = np.minimum(np.sqrt(2 * log_alpha / (before_variance * n * np.log1p(n))), _CAP)
    cost = (scaled - before_mean) ** 2 * (-np.log1p(-bet) - bet)
    stake = float(bet.sum())
    centre, half = float((bet * scaled).sum()) / stake, (log_alpha + float(cost.sum())) / stake
    down = low + (high - low) * max(centre - half, 0.0)
    up = low + (high - low) * min(centre + half, 1.0)
    return Bound(
        x.size, float(x.mean()), down, up, alpha if down > 0 else 1.0, alpha if up < 0 else 1.0
    )


def mixing_variance(alpha: float, tightest_at: int) -> float:
    """ρ² for which the mixture's bound is narrowest after `tightest_at` observations.

    Waudby-Smith et al. 2024, appendix B (of the two-sided bound at 2·alpha, which one side shares
    but for terms that vanish).
    """
    twice = -2 * math.log(min(2 * alpha, 0.99))
    return (twice + math.log1p(twice)) / tightest_at


def ecdf_width(n: int, alpha: float) -> float:
    """How far an empirical distribution of n values may lie from the true one, at any n.

    Largest distance over all values and all n, with probability 1 − alpha (Howard, Ramdas,
    "Sequential estimation of quantiles", 2022, corollary 2).
    """
    if n < 1:
        return 1.0
    return min(
        0.85 * math.sqrt((math.log(math.log(math.e * n)) + 0.8 * math.log(1612 / alpha)) / n), 1.0
    )


def _checked(observations: ArrayLike, alpha: float) -> Floats:
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha={alpha} is no error rate; give one between 0 and 0.5")
    x = np.asarray(observations, dtype=np.float64)
    if x.ndim != 1:
        raise InputError(f"observations have shape {x.shape}; give one value for each unit, (n,)")
    return x


def _p_value(total: float, spread: float, rho2: float) -> float:
    """One over the one-sided mixture e-process at the standardised sum `total`."""
    argument = math.sqrt(rho2 / spread) * total
    above = 0.5 * math.erfc(-argument / math.sqrt(2))
    log_e = math.log(2) - 0.5 * math.log(spread) + argument**2 / 2
    if above <= 0:
        return 1.0
    return min(1.0, math.exp(-min(log_e + math.log(above), 700.0)))


def _unknown(n: int, mean: float) -> Bound:
    return Bound(n, mean, math.nan, math.nan, 1.0, 1.0)
