"""What a candidate's predictions look like, beyond their loss: where they are bad, how far they
moved, and whether one input explains all of them. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import metrics
from headrace.declaration import LineSpec

Floats = NDArray[np.float64]
LARGEST: Final = 12
"""Slices of an input that are looked at: its commonest values among the rows."""
FEWEST: Final = 30
"""Rows of a slice below which nothing is said of it."""


def slices(
    spec: LineSpec, rows: pa.Table, predicted: Floats, rival: Floats
) -> dict[str, dict[str, Any]]:
    """Figures of the slices declared in `gates.model.slices`, by `<input>=<id>`.

    predicted, rival: (rows,) probabilities. The interval of the difference has the confidence of
    the gate, shared among the slices (Bonferroni), so that many slices raise no more alarms.
    """
    labels = rows["label"].to_numpy()
    found: dict[str, NDArray[np.bool_]] = {}
    for name in spec.gates.model.slices:
        values = rows[name].to_numpy()
        ids, counts = np.unique(values, return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:LARGEST]:
            if counts[place] >= FEWEST:
                found[f"{name}={ids[place]}"] = values == ids[place]
    gate = spec.gates.model
    confidence = 1 - (1 - gate.confidence) / max(len(found), 1)
    told = {}
    for name, inside in found.items():
        loss = metrics.row_losses(labels[inside], predicted[inside])
        other = metrics.row_losses(labels[inside], rival[inside])
        mean, low, high = metrics.paired_bootstrap(loss, other, confidence, spec.seed)
        told[name] = {
            "rows": int(inside.sum()),
            "logloss": float(loss.mean()),
            "logloss_diff": mean,
            "logloss_diff_low": low,
            "logloss_diff_high": high,
            "calibration": metrics.calibration(labels[inside], predicted[inside]),
        }
    return told


def shift(predicted: Floats, rival: Floats) -> float:
    """How far the distribution of scores moved from the champion's on the same rows, in log odds:
    Wasserstein's distance, the mean difference of the sorted ones. NaN without rows.

    Not Kolmogorov's: of scores that lie close together a small change moves all.
    """
    if not predicted.size:
        return float("nan")
    sides = [np.sort(np.clip(scores, 1e-7, 1 - 1e-7)) for scores in (predicted, rival)]
    odds = [np.log(scores / (1 - scores)) for scores in sides]
    return float(np.abs(odds[0] - odds[1]).mean())


def importance(
    spec: LineSpec, rows: pa.Table, predict: Callable[[pa.Table], Floats]
) -> dict[str, float]:
    """How much worse the log loss becomes when one input's values change rows at random, over the
    entropy of the label: permutation importance (Breiman 2001; Fisher, Rudin and Dominici 2019).
    Never below 0; NaN where the label has no entropy.
    """
    labels = rows["label"].to_numpy()
    entropy = metrics.log_loss(labels, np.full(labels.size, labels.mean())) if labels.size else 0.0
    before = metrics.log_loss(labels, predict(rows))
    found: dict[str, float] = {}
    for name in (*spec.model.categorical, *spec.model.numeric):
        order = np.random.default_rng([spec.seed, len(found)]).permutation(rows.num_rows)
        place = rows.schema.get_field_index(name)
        mixed = rows.set_column(place, rows.schema.field(place), rows[name].take(pa.array(order)))
        rise = metrics.log_loss(labels, predict(mixed)) - before
        found[name] = max(rise, 0.0) / entropy if entropy > 1e-6 else float("nan")
    return found
