"""A line with every kind of request feature, and models of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.export.graph import Scorer
from headrace.export.probe import rows as probe_rows
from headrace.export.weights import weights
from headrace.model import Model
from headrace.requests import transform

# On columns, windows and other features.
MART: dict[str, Any] = {
    "line": "mart",
    "seed": 3,
    "timezone": "America/New_York",
    "columns": {"user": "string", "place": "string", "item": "int", "price": "float"},
    "source": {"kind": "live"},
    "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
    "windows": [
        {"name": name, "key": ["user"], "event": "click", "window": "1h", **more}
        for name, more in (
            ("clicks", {"aggregate": "count"}),
            ("views", {"aggregate": "count", "event": "impression"}),
            ("spent", {"aggregate": "sum", "column": "item"}),
            ("most", {"aggregate": "max", "column": "item"}),
            ("last_place", {"aggregate": "last", "column": "place"}),
            ("last_item", {"aggregate": "last", "column": "item"}),
            ("clicked_at", {"aggregate": "last_at"}),
        )
    ],
    "request_features": [
        {"name": "hour", "kind": "hour_of_day"},
        {"name": "weekday", "kind": "day_of_week"},
        {"name": "user_id", "kind": "hash", "of": "user"},
        {"name": "item_id", "kind": "hash", "of": "item"},
        {"name": "place_id", "kind": "hash", "of": "last_place"},
        {"name": "last_id", "kind": "hash", "of": "last_item"},
        {"name": "clicks_id", "kind": "hash", "of": "clicks"},
        {"name": "user_item", "kind": "cross", "of": ["user", "item"]},
        {"name": "place_hour", "kind": "cross", "of": ["place", "hour", "last_place"]},
        {"name": "ctr", "kind": "ratio", "of": ["clicks", "views"], "prior": [0.1, 0.2]},
        {"name": "ctr_bucket", "kind": "bucketize", "of": "ctr", "boundaries": [0.2, 0.5, 2]},
        {"name": "bucket_id", "kind": "hash", "of": "ctr_bucket"},
        {"name": "age", "kind": "since", "of": "clicked_at"},
        {"name": "mean_item", "kind": "mean", "of": ["spent", "clicks"], "prior": [0.3, 0]},
        {"name": "price_log", "kind": "log1p", "of": "price"},
        {"name": "price_again", "kind": "number", "of": "price_log"},
        {"name": "price_bucket", "kind": "bucketize", "of": "price_again", "boundaries": [-1, 1.5]},
        {"name": "most_number", "kind": "number", "of": "most"},
        {"name": "hour_number", "kind": "number", "of": "hour"},
        {"name": "unread", "kind": "hash", "of": "place"},
    ],
}
IDS = [
    *("hour", "weekday", "user_id", "item_id", "place_id", "last_id", "clicks_id"),
    *("user_item", "place_hour", "ctr_bucket", "bucket_id", "price_bucket"),
]
NUMBERS = ["ctr", "age", "mean_item", "price_log", "most_number", "hour_number"]
KINDS: dict[str, dict[str, Any]] = {
    "ftrl": {"family": "ftrl"},
    "dcn": {"family": "dcn", "cross_rank": 3, "precision": "bfloat16"},
    "wide": {"family": "ftrl_deep", "wide": ["user_item"]},
    "dynamic": {"family": "ftrl_deep", "ids": "dynamic", "admit_after": 2, "wide": ["place_hour"]},
    "buys": {"family": "ftrl_deep", "wide": ["user_item"]},
    "numbers only": {"family": "ftrl_deep", "categorical": []},
}
BUYS = {"engagement": "buy", "attribution_window": "1d"}
LAST_BITS = 4e-16  # of a probability: exp is TensorFlow's


def mart(kind: str, features: dict[str, Any] | None = None) -> LineSpec:
    model = {"categorical": IDS, "numeric": NUMBERS, "table_bits": 10, "embedding_dim": 4}
    label = MART["label"] | ({"conversion": BUYS} if kind.startswith("buys") else {})
    more = {"label": label, "model": model | KINDS[kind] | (features or {})}
    return LineSpec.model_validate(MART | more)


@cache
def learned(kind: str) -> tuple[LineSpec, Model, Scorer]:
    spec = mart(kind)
    model = learn(spec)
    arrays = weights(spec.model, model.state(), conversion=spec.converts)
    return spec, model, Scorer(spec, arrays)


def learn(spec: LineSpec, rows: int = 500) -> Model:
    """A model of rows whose label follows a few of their features."""
    model = Model(spec.model, spec.seed, conversion=spec.converts)
    inputs = transform(spec, probe_rows(spec, rows, seed=11))
    clicked = (np.arange(rows) % 3 == 0).astype(np.float32)
    bought = (np.arange(rows) % 6 == 0).astype(np.float32)
    for task, label in (("", clicked), ("conversion_", bought)):
        for side, weight in (("positive", label), ("negative", 1 - label)):
            inputs = inputs.append_column(f"{task}{side}_weight", pa.array(weight))
    model.learn(inputs)
    return model
