"""Figures that say how good and how steady predictions are; vectorised NumPy, no I/O.

Labels are 0/1 arrays, predictions probabilities, both of shape (n,). A figure that the rows
cannot give (no rows, one class only) is NaN, never a made-up number.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.errors import InputError

Floats = NDArray[np.float64]

_EPSILON = 1e-7
_RESAMPLES = 1_000
_CELLS = 4_000_000  # indices held at once by the bootstrap (32 MB)


def row_losses(labels: ArrayLike, predictions: ArrayLike) -> Floats:
    """Log loss of each row in nats, shape (n,); predictions are clipped to [1e-7, 1 - 1e-7]."""
    y, p = _pair(labels, predictions)
    p = np.clip(p, _EPSILON, 1.0 - _EPSILON)
    losses: Floats = -np.where(y > 0, np.log(p), np.log1p(-p))
    return losses


def log_loss(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean log loss in nats; NaN without rows or with a NaN prediction."""
    return mean_loss(row_losses(labels, predictions))


def mean_loss(losses: Floats) -> float:
    """Mean of losses by row, shape (n,); NaN without rows or with a NaN loss."""
    return float(losses.mean()) if losses.size else float("nan")


def auc(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Area under the ROC curve by mid-ranks, so ties count one half; NaN with one class only."""
    y, p = _pair(labels, predictions)
    positives = int(np.count_nonzero(y > 0))
    negatives = y.size - positives
    if not positives or not negatives or np.isnan(p).any():
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mid_ranks = last - (counts - 1) / 2.0
    rank_sum = float(mid_ranks[inverse][y > 0].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def calibration(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean prediction over mean label: 1 is calibrated, above 1 promises too much; NaN unless
    there is a positive row.
    """
    y, p = _pair(labels, predictions)
    if not y.size or not y.any():
        return float("nan")
    return float(p.mean() / y.mean())


def rate_interval(labels: ArrayLike, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927) of the label rate at `z` standard errors; NaN without rows."""
    y = np.asarray(labels, dtype=np.float64)
    if not y.size:
        return float("nan"), float("nan")
    n, rate = y.size, float(y.mean())
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def implausible_stretches(
    labels: ArrayLike, bounds: tuple[float, float], size: int, z: float = 3.0
) -> list[tuple[int, float]]:
    """Stretches of `size` consecutive rows whose label rate cannot lie within `bounds`.

    A burst of wrong labels that fills a part of a window moves the window's mean little, and the
    mean of the rows around it a lot. Returns (first row, rate) of each stretch whose whole
    interval at `z` standard errors lies outside; rows left over join the last stretch.
    """
    y = np.clip(np.asarray(labels, dtype=np.float64), 0.0, 1.0)
    found = []
    for stretch in range(max(len(y) // size, 1)):
        first = stretch * size
        part = y[first:] if first + 2 * size > len(y) else y[first : first + size]
        low, high = rate_interval(part, z)
        if low > bounds[1] or high < bounds[0]:
            found.append((first, float(part.mean())))
    return found


def calibration_interval(labels: ArrayLike, predictions: ArrayLike) -> tuple[float, float]:
    """Range of the calibration that the rows allow: mean prediction over the ends of the label
    rate's interval. The upper end stays finite: a rate counts as at least 1e-9.
    """
    y, p = _pair(labels, predictions)
    if not y.size:
        return float("nan"), float("nan")
    low, high = rate_interval(y)
    mean = float(p.mean())
    return mean / high, mean / max(low, 1e-9)


def ks(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance between the scores of positives and negatives; NaN with one
    class only.
    """
    y, p = _pair(labels, predictions)
    positive, negative = np.sort(p[y > 0]), np.sort(p[y <= 0])
    if not positive.size or not negative.size or np.isnan(p).any():
        return float("nan")
    at = np.unique(p)
    share_positive = np.searchsorted(positive, at, side="right") / positive.size
    share_negative = np.searchsorted(negative, at, side="right") / negative.size
    return float(np.abs(share_positive - share_negative).max())


def psi(reference: ArrayLike, actual: ArrayLike, bins: int = 10) -> float:
    """Population stability index over quantile bins of the reference; NaN values form a bin of
    their own. Empty bins count as half a row. NaN when either side has no rows.
    """
    a = np.asarray(reference, dtype=np.float64)
    b = np.asarray(actual, dtype=np.float64)
    if not a.size or not b.size:
        return float("nan")
    known = a[~np.isnan(a)]
    edges = (
        np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1])) if known.size else a[:0]
    )

    def counts(values: Floats) -> NDArray[np.int64]:
        missing = np.isnan(values)
        index = np.where(missing, edges.size + 1, np.searchsorted(edges, values, side="right"))
        return np.bincount(index, minlength=edges.size + 2)

    return psi_of_counts(counts(a), counts(b))


def psi_of_counts(reference: ArrayLike, actual: ArrayLike) -> float:
    """Population stability index of two histograms (bins,); an empty bin counts as half a row.
    NaN when either holds nothing.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if not a.sum() or not b.sum():
        return float("nan")
    p, q = np.maximum(a, 0.5) / a.sum(), np.maximum(b, 0.5) / b.sum()
    return float(((q - p) * np.log(q / p)).sum())


def paired_bootstrap(
    loss_a: ArrayLike, loss_b: ArrayLike, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `loss_a - loss_b` over the same rows, and its two-sided percentile interval.

    Args are losses by row, shape (n,). `seed` fixes the 1,000 resamples, so the same rows give
    the same interval. Returns (mean_diff, low, high), all NaN without rows or with a NaN loss.
    (Efron 1979; the pairing removes what both models find hard.)
    """
    a, b = _pair(loss_a, loss_b)
    difference = a - b
    n = difference.size
    if not n or np.isnan(difference).any():
        return float("nan"), float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    means = np.concatenate(
        [
            difference[generator.integers(0, n, (min(step, _RESAMPLES - at), n))].mean(axis=1)
            for at in range(0, _RESAMPLES, step)
        ]
    )
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(difference.mean()), float(low), float(high)


def auc_difference(
    labels: ArrayLike, left: ArrayLike, right: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """AUC of `left` minus that of `right` on the same rows, and its interval, (mean, low, high).

    The variance is that of DeLong, DeLong and Clarke-Pearson (1988), by mid-ranks as Sun and Xu
    (2014) compute it. With fewer than two rows of a class the interval is all that can be, (-1, 1);
    NaN with one class only or with a NaN prediction.
    """
    y, a = _pair(labels, left)
    _, b = _pair(labels, right)
    difference = auc(y, a) - auc(y, b)
    m, n = int((y > 0).sum()), int((y <= 0).sum())
    if not np.isfinite(difference):
        return float("nan"), float("nan"), float("nan")
    if min(m, n) < 2:
        return difference, -1.0, 1.0
    placements = [_placements(y > 0, scores) for scores in (a, b)]
    positive = placements[0][0] - placements[1][0]
    negative = placements[0][1] - placements[1][1]
    error = float(np.sqrt(positive.var(ddof=1) / m + negative.var(ddof=1) / n))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return difference, difference - reach, difference + reach


def _placements(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative that of positives
    above; ties count one half.
    """

    def below(of: Floats, among: Floats) -> Floats:
        among = np.sort(among)
        sides = [np.searchsorted(among, of, side) for side in ("left", "right")]
        share: Floats = (sides[0] + sides[1]) / (2 * among.size)
        return share

    high, low = scores[positive], scores[~positive]
    return below(high, low), 1.0 - below(low, high)


def _pair(left: ArrayLike, right: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(
            f"metrics need two arrays of one shape (n,), got {a.shape} and {b.shape}; "
            "give one value for each row"
        )
    return a, b
