"""The worst answers of an interval: rows whose label the model expected least.

Asked of clicked and of other rows apart. Where clicks are rare, every missed click costs more than
any wrong promise of one, and a list by loss alone would hold nothing but clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import metrics
from headrace.cases.sheet import own_columns
from headrace.declaration import LineSpec
from headrace.events import as_due
from headrace.report.answered import Interval, sliced_columns, slices

ALL: Final = "all"
_DIGITS: Final = 6


def worst(
    spec: LineSpec, about: Interval, most: int, but: pa.ChunkedArray | None = None
) -> dict[str, list[dict[str, Any]]]:
    """By slice (`all` first), the `most` clicked and the `most` other rows with the largest loss.

    Slices are those of the report. Rows for which another model or none stood in are left out, and
    so are the impressions (log offsets) `but`. Equal losses stand in the order of the log, so the
    same rows give the same cases. Each has the columns of a sheet but the slice's.
    """
    rows = as_due(about.rows)
    if but is not None and len(but):
        rows = rows.filter(pc.invert(pc.is_in(rows["impression_offset"], value_set=but)))
    rows = rows.sort_by("impression_offset").combine_chunks()
    if not rows.num_rows:
        return {ALL: []}
    losses = metrics.row_losses(rows["label"].to_numpy(), rows["score"].to_numpy())
    found = {ALL: np.ones(rows.num_rows, np.bool_)}
    for column in sliced_columns(spec):
        found |= slices(rows, column)
    return {
        name: _told(spec, rows, losses, _places(rows, losses, inside, most))
        for name, inside in found.items()
    }


def listed(by_slice: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each case once, the largest loss first; `slice` names all that it is among the worst of."""
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for name, own in by_slice.items():
        for case in own:
            key = (case["impression_id"], case["served_at"])
            before = cases.get(key)
            told = name if before is None else f"{before['slice']}; {name}"
            cases[key] = {**case, "slice": told}
    return sorted(cases.values(), key=lambda case: -case["logloss"])


def _places(
    rows: pa.Table, losses: NDArray[np.float64], inside: NDArray[np.bool_], most: int
) -> NDArray[np.int64]:
    label = rows["label"].to_numpy()
    order = np.argsort(-losses, kind="stable")
    of_label = [order[(inside & (label == each))[order]][:most] for each in (1, 0)]
    both = np.concatenate(of_label)
    return both[np.argsort(-losses[both], kind="stable")]


def _told(
    spec: LineSpec, rows: pa.Table, losses: NDArray[np.float64], places: NDArray[np.int64]
) -> list[dict[str, Any]]:
    own = rows.take(pa.array(places))
    score, label = own["score"].to_numpy(), own["label"].to_numpy()
    served_at = own["served_at"].cast(pa.int64()).to_numpy().astype("datetime64[us]")
    columns: dict[str, Sequence[Any]] = {
        "line": [spec.line] * own.num_rows,
        **{name: own[name].to_pylist() for name in ("impression_id", "request_id")},
        "served_at": [f"{moment}Z" for moment in np.datetime_as_string(served_at)],
        **{name: own[name].to_pylist() for name in ("version", "arm", *own_columns(spec))},
        "score": score.round(_DIGITS).tolist(),
        "label": label.tolist(),
        "logloss": losses[places].round(_DIGITS).tolist(),
        "residual": (label - score).round(_DIGITS).tolist(),
    }
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
