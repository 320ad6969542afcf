"""Thompson sampling as odds: the probability that each arm is the best, given its clicks.

Drawing an arm by these odds is what sampling a rate from each posterior and taking the largest
does (Thompson 1933; Chapelle, Li 2011), with one gain: the probability of the draw is known
exactly and can be logged, which off-policy estimates need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InputError

Floats = NDArray[np.float64]
_POINTS = 401
_DEVIATIONS = 9.0


def odds(
    tallies: Mapping[str, tuple[float, float]],
    explore: float,
    prior: tuple[float, float] = (1.0, 1.0),
) -> dict[str, float]:
    """Probability of being the best by arm, at least `explore` each; they add up to 1.

    tallies: (clicks, rows without) of each arm. prior: the Beta prior's, in the same order. By
    quadrature over the Beta posteriors, to about six digits: no random numbers.
    """
    posteriors = {name: (prior[0] + c, prior[1] + n) for name, (c, n) in tallies.items()}
    if not posteriors or explore * len(posteriors) >= 1:
        raise InputError(
            f"explore={explore} for {len(posteriors)} arms leaves nothing to learn from; give "
            "less than one over the number of arms"
        )
    if any(min(parameters) <= 0 for parameters in posteriors.values()):
        raise InputError("a tally is below zero; count clicks and rows from 0 upwards")
    grid = _grid(list(posteriors.values()))
    density = {name: _density(grid, *parameters) for name, parameters in posteriors.items()}
    below = {name: _cumulated(grid, values) for name, values in density.items()}
    best = {}
    for name, values in density.items():
        rivals = [below[other] for other in density if other != name]
        best[name] = float(np.trapezoid(values * np.prod(rivals, axis=0), grid))
    total = sum(best.values())
    kept = 1 - explore * len(best)
    return {name: explore + kept * value / total for name, value in best.items()}


def _grid(posteriors: list[tuple[float, float]]) -> Floats:
    """Points within nine deviations of each posterior: narrow and wide ones fit together."""
    parts = []
    for a, b in posteriors:
        mean, deviation = a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b)
        low = max(mean - _DEVIATIONS * deviation, 1e-12)
        high = min(mean + _DEVIATIONS * deviation, 1 - 1e-12)
        parts.append(np.linspace(low, high, _POINTS))
    return np.unique(np.concatenate(parts))


def _density(grid: Floats, a: float, b: float) -> Floats:
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    values: Floats = np.exp(constant + (a - 1) * np.log(grid) + (b - 1) * np.log1p(-grid))
    return values


def _cumulated(grid: Floats, density: Floats) -> Floats:
    steps = np.diff(grid) * (density[1:] + density[:-1]) / 2
    cumulated = np.concatenate([[0.0], np.cumsum(steps)])
    shares: Floats = cumulated / cumulated[-1]
    return shares
