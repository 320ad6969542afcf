"""Scores of replay policies on the same rows: overall, by day and by month, and who beats whom.

Pure. Every comparison is between losses of the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.metrics import auc, calibration, log_loss, paired_bootstrap, row_losses

Floats = NDArray[np.float64]
POLICIES: Final = ("fresh", "daily", "frozen")
_MONTHS_FROM_DAYS: Final = 60
_BLOCKS: Final = 20


def scores(labels: NDArray[np.int8], predictions: Floats, days: NDArray[np.str_]) -> dict[str, Any]:
    """Log loss, AUC and calibration of all rows, `by_day`, and `by_month` of 60 days or more.

    `days` are ISO dates. A figure that the rows do not give (one class only) is None.
    """
    result: dict[str, Any] = dict(_figures(labels, predictions))
    result["by_day"] = _by(labels, predictions, days, "day")
    if len(result["by_day"]) >= _MONTHS_FROM_DAYS:
        result["by_month"] = _by(labels, predictions, days.astype("U7"), "month")
    return result


def _figures(labels: NDArray[np.int8], predictions: Floats) -> dict[str, float | None]:
    figures = {"logloss": log_loss, "auc": auc, "calibration": calibration}
    found = {name: figure(labels, predictions) for name, figure in figures.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _by(
    labels: NDArray[np.int8], predictions: Floats, periods: NDArray[np.str_], name: str
) -> list[dict[str, Any]]:
    distinct, place = np.unique(periods, return_inverse=True)
    order = np.argsort(place, kind="stable")
    cuts = np.searchsorted(place[order], np.arange(len(distinct) + 1))
    rows = []
    for number, period in enumerate(distinct):
        mine = order[cuts[number] : cuts[number + 1]]
        figures = _figures(labels[mine], predictions[mine])
        rate = float(labels[mine].mean())
        rows.append({name: str(period), "rows": len(mine), "label_rate": rate, **figures})
    return rows


def comparisons(
    labels: NDArray[np.int8],
    predictions: Mapping[str, Floats],
    days: NDArray[np.str_],
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Each policy against the next staler one: difference of mean log loss, positive is better.

    The interval resamples days where there are 20 or more (rows of a day share its weather),
    else rows.
    """
    losses = {name: row_losses(labels, predictions[name]) for name in POLICIES}
    distinct, place = np.unique(days, return_inverse=True)
    rows = np.bincount(place)
    found = []
    for better, worse in (("fresh", "daily"), ("daily", "frozen")):
        gain = losses[worse] - losses[better]
        by_day = np.bincount(place, weights=gain) / rows
        unit = "days" if len(distinct) >= _BLOCKS else "rows"
        # a day counts by its rows, so that the mean over days is the mean over rows
        blocks = by_day * rows / rows.mean() if unit == "days" else gain
        _, low, high = paired_bootstrap(blocks, np.zeros_like(blocks), confidence, seed)
        found.append(
            {
                "better": better,
                "worse": worse,
                "logloss_gain": float(gain.mean()),
                "low": low,
                "high": high,
                "resampled": unit,
                "days": len(distinct),
                "days_better": int((by_day > 0).sum()),
                "days_equal": int((by_day == 0).sum()),
                "holds": bool(gain.mean() > 0),
            }
        )
    return found


def explanation(policies: Mapping[str, Any], compared: list[dict[str, Any]]) -> str | None:
    """Where a fresher policy did not win beyond chance, and why; None where each one did."""
    sentences = []
    for one in compared:
        if one["holds"]:
            if not one["low"] > 0:
                sentences.append(
                    f"{one['better']} beats {one['worse']} by {one['logloss_gain']:.5f} in log "
                    f"loss, but the interval of the gain, resampling {one['resampled']}, is "
                    f"{one['low']:.5f} to {one['high']:.5f}: within chance."
                )
            continue
        better, worse = one["better"], one["worse"]
        a, b = policies[better], policies[worse]
        certain = one["low"] <= 0 <= one["high"]
        sentences.append(
            f"{better} does not beat {worse}: its log loss is {-one['logloss_gain']:.5f} higher "
            f"({a['logloss']:.5f} against {b['logloss']:.5f}; the interval of the gain, resampling "
            f"{one['resampled']}, is {one['low']:.5f} to {one['high']:.5f}, so the difference is "
            f"{'within chance' if certain else 'not chance'}); better on {one['days_better']} of "
            f"{one['days']} days."
        )
        sentences.append(_ranking_or_level(better, worse, a, b))
    return " ".join(sentences) or None


def _ranking_or_level(better: str, worse: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if None in (a["auc"], b["auc"], a["calibration"], b["calibration"]):
        return "One class only, so AUC and calibration say nothing."
    ranks = "no worse" if a["auc"] >= b["auc"] else "worse"
    level = "closer to" if abs(a["calibration"] - 1) < abs(b["calibration"] - 1) else "farther from"
    return (
        f"{better} ranks {ranks} than {worse} (AUC {a['auc']:.4f} against {b['auc']:.4f}) and its "
        f"mean prediction lies {level} the mean label (calibration {a['calibration']:.3f} against "
        f"{b['calibration']:.3f}). All policies share the window features, which carry most of "
        "what is recent; only training differs."
    )
