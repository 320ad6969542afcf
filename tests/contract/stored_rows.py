"""Rows of features as tests push them, ask for them and compare them."""

from __future__ import annotations

import sqlite3
from typing import Any

import pyarrow as pa

from headrace.declaration import MISSING, LineSpec
from headrace.events import ARROW_TYPES, TIME
from headrace.settings import Settings

T0 = 1_750_000_000_123_457  # not a whole second: Feast's SQLite store would cut it
HOUR_US = 3_600_000_000
WIDE = 10_000
BIG = 2**62 + 1  # a float64 would round it


def rows(spec: LineSpec, view: str, at_us: int, keys: list[tuple[object, ...]], value: int):
    names = spec.views[view][0].key
    columns = {
        name: pa.array([key[i] for key in keys], ARROW_TYPES[spec.columns[name]])
        for i, name in enumerate(names)
    }
    columns["event_timestamp"] = pa.array([at_us] * len(keys), pa.int64()).cast(TIME)
    for i, feature in enumerate(spec.views[view]):
        # by turns nothing and a moment close before the request, where a feature may have none
        stored = MISSING if feature.empty and value % 200 < 100 else value + i
        if feature.aggregate == "last_at" and stored != MISSING:
            stored = at_us - i
        columns[feature.name] = pa.array([stored] * len(keys), pa.int64())
    return pa.table(columns)


def asked(spec: LineSpec, at_us: list[int], **columns: list[object]) -> pa.Table:
    size = len(at_us)
    given = {
        name: pa.array(columns.get(name, [None] * size), ARROW_TYPES[kind])
        for name, kind in spec.columns.items()
    }
    return pa.table(given | {"request_at": pa.array(at_us, pa.int64())})


def bits(found: pa.Table) -> dict[str, list[object]]:
    """Columns as they are compared: floats by their bits."""
    return {
        name: column.to_numpy().view("int64").tolist()
        if pa.types.is_floating(column.type)
        else column.to_pylist()
        for name, column in zip(found.column_names, found.columns, strict=True)
    }


def stored(settings: Settings) -> dict[Any, Any]:
    """All that the online store holds but marks and pushes, as it lies there."""
    if settings.online_store is None:
        with sqlite3.connect(settings.home / "feast" / "online.db") as connection:
            names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%_by_%'"
            return {
                (table, *row[:2]): row[2:]
                for (table,) in connection.execute(names).fetchall()
                for row in connection.execute(f"SELECT * FROM {table}")
            }
    from redis import Redis

    client = Redis.from_url(settings.online_store)
    keys = client.scan_iter()
    return {key: client.hgetall(key) for key in keys if not key.startswith(b"headrace:")}
