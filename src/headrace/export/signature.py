"""What goes into an exported signature: names, types, and how a missing value is said."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.feature_rows import MISSING_KEY
from headrace.model.runtime import tf

NAME: Final = "serving_default"
ABSENT: Final[dict[str, Any]] = MISSING_KEY | {"float": float("nan")}
"""What says that a value is missing, by the type of a column; `int` also for windows and times."""


def specs(spec: LineSpec) -> dict[str, Any]:
    """TensorSpecs by name, each (n,): declared columns, `request_at` (µs since 1970), windows.

    All that is declared, also what the model does not read: so callers need not change when the
    model's features do.
    """
    kinds = {"string": tf.string, "int": tf.int64, "float": tf.float64}
    types = {name: kinds[kind] for name, kind in spec.columns.items()}
    types |= dict.fromkeys(["request_at", *(feature.name for feature in spec.windows)], tf.int64)
    return {name: tf.TensorSpec([None], dtype, name) for name, dtype in types.items()}


def outputs(spec: LineSpec) -> dict[str, str]:
    """What the signature gives, each (n,), and its type.

    `probability` is that of a click, `logit` its log odds; of a line with conversions also that of
    a `conversion` given a click, their product `click_and_conversion`, and the second log odds.
    """
    if not spec.converts:
        return {"probability": "float64", "logit": "float32"}
    probabilities = dict.fromkeys(("probability", "conversion", "click_and_conversion"), "float64")
    return probabilities | {"logit": "float32", "conversion_logit": "float32"}


def feed(spec: LineSpec, table: pa.Table) -> dict[str, NDArray[Any]]:
    """An Arrow table of those inputs as the arrays that the signature takes, nulls as `ABSENT`."""
    fed: dict[str, NDArray[Any]] = {}
    for name in specs(spec):
        kind = spec.columns.get(name, "int")
        column = table[name].combine_chunks()
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        values = column.fill_null(ABSENT[kind]).to_numpy(zero_copy_only=False)
        dtype = {"string": object, "int": np.int64, "float": np.float64}[kind]
        fed[name] = values.astype(dtype)
    return fed
