"""A line with a window of every kind, and states of its windows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.windows import WindowState

WINDOWS = [
    {"name": "user_views_count_3", "key": ["user"], "event": "impression", "window": "3ms"},
    {"name": "user_views_count_20", "key": ["user"], "event": "impression", "window": "20ms"},
    {"name": "user_clicks_sum_20", "key": ["user"], "event": "click", "window": "20ms"},
    {"name": "item_clicks_count_7", "key": ["item"], "event": "click", "window": "7ms"},
    {"name": "item_price_sum_7", "key": ["item"], "event": "click", "window": "7ms"},
    {"name": "item_price_sum_11", "key": ["item"], "event": "impression", "window": "11ms"},
    {
        "name": "pair_views_count_11",
        "key": ["user", "item"],
        "event": "impression",
        "window": "11ms",
    },
    {"name": "pair_price_sum_3", "key": ["user", "item"], "event": "click", "window": "3ms"},
    *(
        {
            "name": f"{'_'.join(key)}_{column}_{aggregate}_{rank}_{window}",
            "key": key,
            "event": event,
            "aggregate": aggregate,
            "column": column,
            "rank": rank,
            "window": window,
        }
        for key, event, column, aggregate, rank, window in [
            (["user"], "impression", "price", "min", 1, "3ms"),
            (["user"], "impression", "price", "min", 1, "20ms"),
            (["user"], "impression", "price", "max", 1, "11ms"),
            (["item"], "click", "price", "max", 1, "7ms"),
            (["user"], "impression", "item", "distinct", 1, "3ms"),
            (["user"], "impression", "item", "distinct", 1, "20ms"),
            (["item"], "impression", "note", "distinct", 1, "11ms"),
            (["user"], "click", "note", "last", 1, "20ms"),
            (["user"], "click", "note", "last", 2, "7ms"),
            (["user"], "impression", "price", "last", 3, "20ms"),
            (["user", "item"], "click", "value", "last", 1, "7ms"),
        ]
    ),
    {
        "name": "user_seen_at_7",
        "key": ["user"],
        "event": "impression",
        "aggregate": "last_at",
        "window": "7ms",
    },
    {
        "name": "pair_clicked_at_20",
        "key": ["user", "item"],
        "event": "click",
        "aggregate": "last_at",
        "window": "20ms",
    },
]


def spec_with(windows: list[dict[str, Any]]) -> LineSpec:
    declared = [
        {
            "aggregate": "sum" if "_sum_" in window["name"] else "count",
            "column": "price" if "_price_" in window["name"] else "value",
            **window,
        }
        for window in windows
    ]
    return LineSpec.model_validate(
        {
            "line": "toy",
            "columns": {"user": "string", "item": "int", "price": "int", "note": "string"},
            "source": {"kind": "live"},
            "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
            "windows": declared,
            "request_features": [{"name": "user_id", "kind": "hash", "of": "user"}],
            "model": {"categorical": ["user_id"]},
        }
    )


SPEC = spec_with(WINDOWS)
SCHEMA = pa.schema(
    {
        "knowledge_at": pa.int64(),
        "event": pa.string(),
        "value": pa.int64(),
        "user": pa.string(),
        "item": pa.int64(),
        "price": pa.int64(),
        "note": pa.string(),
    }
)
KEYS = pa.schema([SCHEMA.field("user"), SCHEMA.field("item")])


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def pieces(rows: list[dict[str, Any]], cuts: list[int]) -> list[pa.Table]:
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    return [table(rows[a:b]) for a, b in pairwise(edges)]


def state_of(rows: list[dict[str, Any]], cuts: list[int] | None = None) -> WindowState:
    state = WindowState(SPEC)
    for piece in pieces(rows, cuts or []):
        state.append(piece)
    return state


def assert_same_state(one: WindowState, other: WindowState) -> None:
    mine, theirs = one.checkpoint(), other.checkpoint()
    assert list(mine) == list(theirs)
    assert all(mine[name].equals(theirs[name]) for name in mine)
