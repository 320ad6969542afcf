"""An export is believed after it has scored the same rows as the server's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import metrics
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.export.signature import feed, outputs
from headrace.model import Model
from headrace.model.runtime import tf
from headrace.requests import transform

Serve = Callable[..., Mapping[str, Any]]
"""What `tf.saved_model.load(DIR).signatures["serving_default"]` gives, or a graph before it."""
TOLERANCE: Final = 1e-6
"""Of a probability. Where TensorFlow rounds as the server's does, 2e-16 is the largest found."""


@dataclass(frozen=True)
class Figures:
    """Log loss and AUC of the click on the same rows: of the server's model and of the export."""

    rows: int
    logloss: float
    exported_logloss: float
    auc: float
    exported_auc: float


def scores(serve: Serve, spec: LineSpec, table: pa.Table) -> NDArray[np.float64]:
    """Probabilities (n, tasks) of raw rows by an exported signature; that of a click is first."""
    fed = {name: tf.constant(values) for name, values in feed(spec, table).items()}
    answer = serve(**fed)
    named = [name for name, dtype in outputs(spec).items() if dtype == "float64"]
    return np.stack([answer[name].numpy() for name in named], 1)


def server_scores(model: Model, spec: LineSpec, table: pa.Table) -> NDArray[np.float64]:
    """Probabilities (n, tasks) by the server's path; NaN for a row that it refuses."""
    inputs = transform(spec, table)
    accepted = np.ones(table.num_rows, np.bool_)
    for name in spec.model.numeric:
        accepted &= ~np.isinf(inputs[name].to_numpy())
    tasks = model.predict_tasks(inputs.filter(pa.array(accepted)))
    found = np.full((table.num_rows, len(tasks)), np.nan)
    found[accepted] = np.stack(list(tasks.values()), 1)
    return found


def check(serve: Serve, model: Model, spec: LineSpec, table: pa.Table) -> float:
    """The largest difference of a probability between the two on raw rows.

    Rows that the server refuses are left out. Raises `IntegrityError` beyond `TOLERANCE`.
    """
    expected = server_scores(model, spec, table)
    kept = ~np.isnan(expected[:, 0])
    expected, table = expected[kept], table.filter(pa.array(kept))
    found = scores(serve, spec, table)
    apart = np.abs(found - expected)
    wrong = ~(apart <= TOLERANCE).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise IntegrityError(
            f"export of {spec.line!r}: a row scores {found[row]} where the server gives "
            f"{expected[row]}; nothing was written: {table.slice(row, 1).to_pylist()[0]}"
        )
    return float(apart.max(initial=0.0))


def compare(serve: Serve, model: Model, spec: LineSpec, samples: pa.Table) -> Figures:
    """Both on labelled raw rows, none of which the server refuses."""
    labels = samples["label"].to_numpy()
    before = server_scores(model, spec, samples)[:, 0]
    after = scores(serve, spec, samples)[:, 0]
    return Figures(
        rows=samples.num_rows,
        logloss=metrics.log_loss(labels, before),
        exported_logloss=metrics.log_loss(labels, after),
        auc=metrics.auc(labels, before),
        exported_auc=metrics.auc(labels, after),
    )
