"""Every kind of model that is declared here, and rows that each of them learns; no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from headrace.declaration import ModelSpec

KINDS: dict[str, dict[str, Any]] = {
    "ftrl": {"family": "ftrl"},
    "deep": {"family": "deep"},
    "ftrl_deep": {"family": "ftrl_deep"},
    "dcn": {"family": "dcn", "cross_rank": 3},
    "wide": {"family": "ftrl_deep", "wide": ("user",)},
    "dynamic": {"family": "ftrl_deep", "ids": "dynamic", "admit_after": 2, "expire_after": "1h"},
    "bfloat16": {"family": "dcn", "precision": "bfloat16"},
    "dynamic wide": {"family": "ftrl_deep", "wide": ("item",), "ids": "dynamic"},
    "two tasks": {"family": "ftrl_deep", "wide": ("item",)},
    "two tasks dcn": {"family": "dcn", "cross_rank": 3, "ids": "dynamic"},
}
# building their graphs takes long, and each shares its parts with one of the others
MIXTURES = {"deep", "ftrl_deep", "bfloat16", "dynamic wide", "two tasks dcn"}
BATCH = 64
FIELDS = ("user", "item")
NUMBERS = ("rate", "log_count")
PUBLISHED: dict[str, Any] = {
    "from_tick": 0,
    "to_tick": 1,
    "excluded": [],
    "watermark_us": 1,
    "event_at_us": 1,
    "feature_service": "x_v1",
    "code": "test",
    "rows": 1,
    "metrics": {},
}


def spec_of(family: str, **changes: Any) -> ModelSpec:
    declared = {
        **KINDS[family],
        "categorical": FIELDS,
        "numeric": NUMBERS,
        "table_bits": 10,
        "embedding_dim": 4,
        "hidden": (16, 8),
        "batch_size": BATCH,
        "ftrl_alpha": 0.1,
        "dense_learning_rate": 0.01,
    }
    if not changes.get("categorical", True):
        changes |= {"wide": (), "ids": "hashed", "admit_after": 1, "expire_after": None}
    return ModelSpec.model_validate(declared | changes)


def stream(rows: int, seed: int = 0) -> pa.Table:
    """The item decides the label up to noise; the rate helps; some values are missing.

    What was clicked converts by its item too, otherwise than it was clicked.
    """
    draw = np.random.default_rng(seed)
    item = draw.integers(0, 20, rows)
    rate = draw.random(rows)
    logit = np.where(item % 2 == 0, 2.5, -2.5) + 3 * (rate - 0.5)
    label = draw.random(rows) < 1 / (1 + np.exp(-logit))
    user = draw.integers(0, 2**63 - 1, 40)[draw.integers(0, 40, rows)]
    user[draw.random(rows) < 0.1] = -1
    rate[draw.random(rows) < 0.1] = np.nan
    log_count = draw.random(rows) * 10
    converted = label & (draw.random(rows) < conversion_rate(item))
    return samples(user, item, rate, log_count, label, converted)


def conversion_rate(item: Any) -> Any:
    return np.where(item % 5 == 0, 0.9, 0.1)


def samples(
    user: Any, item: Any, rate: Any, log_count: Any, label: Any, converted: Any = 0
) -> pa.Table:
    converted = np.broadcast_to(np.asarray(converted, np.float32), np.shape(label))
    return pa.table(
        {
            "user": pa.array(user, pa.int64()),
            "item": pa.array(item, pa.int64()),
            "rate": pa.array(rate, pa.float64()),
            "log_count": pa.array(log_count, pa.float64()),
            "positive_weight": pa.array(np.asarray(label, np.float32)),
            "negative_weight": pa.array(1 - np.asarray(label, np.float32)),
            "conversion_positive_weight": pa.array(converted),
            "conversion_negative_weight": pa.array(1 - converted),
            "event_at": pa.array(np.arange(len(label)) * 10_000_000),
        }
    )


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, name, pa.array(values, table.schema.field(name).type))


def weighed(table: pa.Table, positive: Any, negative: Any) -> pa.Table:
    """The rows with these weights of the click, of which none converts."""
    positive, negative = (np.broadcast_to(w, table.num_rows) for w in (positive, negative))
    weights = {"positive_weight": positive, "negative_weight": negative}
    weights |= {"conversion_positive_weight": 0 * positive}
    weights |= {"conversion_negative_weight": positive + negative}
    for name, values in weights.items():
        table = with_column(table, name, values.astype(np.float32))
    return table
