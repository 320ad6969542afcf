"""Has a mean changed? The test of Page and Hinkley on a stream of losses. Pure.

Page, "Continuous inspection schemes", Biometrika 41 (1954); in the form of Gama et al., "A survey
on concept drift adaptation", ACM Computing Surveys 46 (2014), section 3.2, but with the mean and
spread of a reference in place of running ones, so that a slow rise does not become the norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InputError

Floats = NDArray[np.float64]
ALLOWED: Final = 0.1
"""Deviations that the mean may rise for good without being told: seasons, not changes."""


@dataclass(frozen=True)
class Change:
    """`at`: number of the value at which the rise was sure, None without one; `statistic` is the
    largest value of the test, `threshold` what it has to exceed.
    """

    at: int | None
    statistic: float
    threshold: float


def threshold(false_alarms: float, deviation: float = 1.0) -> float:
    """The threshold at which one value in `1 / false_alarms` raises a false alarm.

    From Siegmund's approximation of the run length of a Gaussian walk with drift −ALLOWED,
    (exp(2Δb) − 2Δb − 1) / 2Δ² with b = threshold + 1.166 (Siegmund 1985, "Sequential Analysis",
    2.6); heavier tails than Gauss's need means of some values.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms {false_alarms}: give a rate between 0 and 1 for a value")
    low, high = 0.0, 1e6
    for _ in range(100):
        b = (low + high) / 2
        x = min(2 * ALLOWED * (b + 1.166), 700.0)
        enough = (np.exp(x) - x - 1) / (2 * ALLOWED**2) >= 1 / false_alarms
        low, high = (low, b) if enough else (b, high)
    return high * deviation


def risen(reference: Floats, values: Floats, false_alarms: float) -> Change:
    """Whether the mean of `values` (n,), in order, surely lies above that of `reference` (m,).

    Values are counted in deviations of the reference. Nothing is sure with fewer than 30 values
    of reference, or where they do not vary.
    """
    bound = threshold(false_alarms)
    spread = float(reference.std(ddof=1)) if reference.size >= 30 else 0.0
    if not values.size or not spread > 0:
        return Change(None, 0.0, bound)
    walk = np.cumsum((values - reference.mean()) / spread - ALLOWED)
    test = walk - np.minimum.accumulate(np.minimum(walk, 0.0))
    over = np.flatnonzero(test > bound)
    return Change(int(over[0]) if over.size else None, float(test.max()), bound)
