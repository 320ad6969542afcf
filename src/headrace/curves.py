"""What predictions look like beside labels: the ROC curve and the calibration, as points and HTML.

Labels are 0/1 arrays and predictions probabilities, both of shape (n,). Without both classes there
is no curve, and without rows no bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.metrics import auc, calibration, ks

Floats = NDArray[np.float64]

POINTS: Final = 100
BINS: Final = 10
_STYLE: Final = (
    "body{font:14px system-ui;margin:1.5em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;text-align:right}th{border-bottom:1px solid #999}"
    "i{display:inline-block;height:.7em;background:#37c}b{display:inline-block;height:.7em;"
    "background:#e83}"
)


@dataclass(frozen=True)
class Roc:
    """Points from (0, 0) to (1, 1) as the threshold falls; at most `POINTS` + 1, shapes (k,)."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    threshold: Floats


@dataclass(frozen=True)
class Bin:
    """Rows of neighbouring predictions: how many, their mean prediction and their label rate."""

    rows: int
    predicted: float
    observed: float


def roc(labels: ArrayLike, predictions: ArrayLike, points: int = POINTS) -> Roc | None:
    """The curve over all thresholds, thinned to `points` of them; None with one class only.

    A row is called positive when its prediction is at least the threshold; the first one, above
    every prediction, is 1 more than the largest (Fawcett 2006).
    """
    y, p = np.asarray(labels) > 0, np.asarray(predictions, dtype=np.float64)
    if y.all() or not y.any() or np.isnan(p).any():
        return None
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last = np.append(np.flatnonzero(np.diff(p)), p.size - 1)  # of each threshold, the last row
    if last.size > points:
        last = last[np.unique(np.linspace(0, last.size - 1, points).round().astype(np.int64))]
    hits = np.cumsum(y)[last]
    return Roc(
        np.append(0.0, (last + 1 - hits) / (~y).sum()),
        np.append(0.0, hits / y.sum()),
        np.append(p[0] + 1.0, p[last]),
    )


def calibration_bins(labels: ArrayLike, predictions: ArrayLike, bins: int = BINS) -> list[Bin]:
    """Rows in order of their prediction, cut into `bins` of equal size (fewer where rows lack)."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    return [
        Bin(part.size, float(p[part].mean()), float(y[part].mean()))
        for part in np.array_split(order, bins)
        if part.size
    ]


def calibration_page(title: str, labels: ArrayLike, predictions: ArrayLike) -> str:
    """A page with a row a bin, and bars of what was predicted beside what was observed."""
    found = calibration_bins(labels, predictions)
    widest = max((max(one.predicted, one.observed) for one in found), default=0.0) or 1.0
    rows = "".join(
        f"<tr><td>{one.rows}<td>{one.predicted:.4f}<td>{one.observed:.4f}"
        f'<td style="text-align:left"><i style="width:{160 * one.predicted / widest:.0f}px"></i>'
        f'<br><b style="width:{160 * one.observed / widest:.0f}px"></b></tr>'
        for one in found
    )
    figures = (
        f"mean prediction over label rate {calibration(labels, predictions):.3f}, "
        f"AUC {auc(labels, predictions):.4f}, K-S {ks(labels, predictions):.4f}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{figures}</p><table>"
        f"<tr><th>rows<th>predicted<th>observed<th></tr>{rows}</table></html>"
    )
