"""The rows that go to Feast and come back: their columns, types and missing values. Pure.

Request fields. Feast 0.67 looks a name in an entity row up once: a request field called like
an entity's join key takes the value and the key is gone. So a column that is both (`user_id`
finds the counters and is hashed into a model input) is sent twice: `user_id` is the join key
and `user_id__request` the request field. A null key part is replaced by a marker that no row
is ever written under (Feast cannot look up null); the request field keeps the null.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace import requests
from headrace.declaration import LineSpec
from headrace.events import ARROW_TYPES, TIME, input_fields
from headrace.raw import Candidates

MISSING_KEY: Final = {"string": "\x1amissing", "int": -(2**63)}
_OF_FEATURES: Final = {"line", "version", "timezone", "columns", "windows", "request_features"}


def part_schema(spec: LineSpec, view: str) -> pa.Schema:
    """Columns of a view's parts: keys, `event_timestamp`, `<view>__at`, window features."""
    features = spec.views[view]
    return pa.schema(
        [
            *(pa.field(name, ARROW_TYPES[spec.columns[name]]) for name in features[0].key),
            pa.field("event_timestamp", TIME),
            pa.field(f"{view}__at", pa.int64()),
            *(pa.field(feature.name, pa.int64()) for feature in features),
        ]
    )


def feature_part(spec: LineSpec, view: str, rows: pa.Table) -> pa.Table:
    """A part as Feast wants it: `rows` in the view's column order, with `<view>__at` (int64 us).

    `rows` holds the key columns, `event_timestamp` (timestamp us UTC) and the window features.
    """
    if f"{view}__at" not in rows.column_names:
        at = rows["event_timestamp"].cast(TIME).cast(pa.int64())
        rows = rows.append_column(f"{view}__at", at)
    schema = part_schema(spec, view)
    return rows.select(schema.names).cast(schema).combine_chunks()


def feature_schema(spec: LineSpec) -> pa.Schema:
    """Columns that reading gives: `<view>__at`, window features, model inputs."""
    return pa.schema(
        [
            *(pa.field(f"{view}__at", TIME) for view in spec.views),
            *(pa.field(feature.name, pa.int64(), nullable=False) for feature in spec.windows),
            *input_fields(spec),
        ]
    )


def request_fields(spec: LineSpec) -> dict[str, str]:
    """Request fields of the on-demand view and their types: used columns, then `request_at`."""
    used = {name for feature in spec.request_features for name in feature.inputs}
    fields: dict[str, str] = {
        _request_name(spec, name): kind for name, kind in spec.columns.items() if name in used
    }
    return fields | {"request_at": "int"}


def entity_columns(spec: LineSpec, asked: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Join keys (never null) and request fields of rows asked, as Feast wants them."""
    columns = key_columns(spec, asked)
    fields = request_fields(spec)
    for name, kind in spec.columns.items():
        if (sent := _request_name(spec, name)) in fields:
            column = asked[name].cast(ARROW_TYPES[kind])
            if kind == "float":  # one way to say missing, or pandas and Feast choose differently
                column = pc.if_else(pc.is_nan(column), None, column)
            columns[sent] = column
    columns["request_at"] = asked["request_at"].cast(pa.int64())
    return columns


def key_columns(spec: LineSpec, asked: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Join keys of rows asked; a null is replaced by a marker that no row is written under."""
    columns = {}
    for name in spec.key_columns:
        kind = spec.columns[name]
        columns[name] = pc.fill_null(asked[name].cast(ARROW_TYPES[kind]), MISSING_KEY[kind])
    return columns


def key_values(spec: LineSpec, asked: pa.Table | Candidates) -> dict[str, Sequence[Any]]:
    """The same as Python's values, for a few rows."""
    columns: dict[str, Sequence[Any]] = {}
    for name in spec.key_columns:
        kind = spec.columns[name]
        if isinstance(asked, Candidates):
            values = asked.columns[name]
        else:
            values = asked[name].cast(ARROW_TYPES[kind]).to_pylist()
        if None in values:
            values = [MISSING_KEY[kind] if value is None else value for value in values]
        columns[name] = values
    return columns


def feature_table(spec: LineSpec, columns: requests.Columns) -> pa.Table:
    """Columns of `feature_schema` as a table; a time of 0 is null."""
    arrays = []
    schema = feature_schema(spec)
    for field in schema:
        values = columns[field.name]
        if pa.types.is_timestamp(field.type):
            arrays.append(pa.array(values, pa.int64(), mask=values == 0).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def typed(spec: LineSpec, found: pa.Table) -> pa.Table:
    """What Feast returned, as `feature_schema`: absent reads as empty, 0, NaN or a null time."""
    empty = {feature.name: feature.empty for feature in spec.windows}
    columns = []
    for field in feature_schema(spec):
        column = found[field.name]
        if column.null_count and not pa.types.is_timestamp(field.type):
            nothing = math.nan if pa.types.is_floating(field.type) else empty.get(field.name, 0)
            column = pc.fill_null(column, nothing)
        if pa.types.is_timestamp(field.type):
            at = column.cast(pa.int64())
            column = pc.if_else(pc.equal(pc.fill_null(at, 0), 0), None, at).cast(field.type)
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=feature_schema(spec)).combine_chunks()


def request_inputs(line: str, columns: dict[str, Any]) -> dict[str, Any]:
    """Body of the on-demand view: Feast's columns → model inputs, as Python lists.

    `line` is the declaration as JSON. Window features of an absent key are null in Feast and
    have their `empty` value, online and in history alike. Given Arrow columns (chunked arrays,
    as our offline stores do) it returns Arrow columns with the same bits.
    """
    spec = _parse(line)
    size = len(columns["request_at"])
    table: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name, kind in spec.columns.items():
        sent = columns.get(_request_name(spec, name))
        table[name] = _column([None] * size if sent is None else sent, ARROW_TYPES[kind])
    table["request_at"] = _column(columns["request_at"], pa.int64())
    for feature in spec.windows:
        table[feature.name] = pc.fill_null(
            _column(columns[feature.name], pa.int64()), feature.empty
        )
    inputs = requests.transform(spec, pa.table(table))
    if isinstance(columns["request_at"], pa.ChunkedArray):
        return dict(zip(inputs.column_names, inputs.columns, strict=True))
    values: dict[str, Any] = inputs.to_pydict()
    return values


def _column(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def line_tags(spec: LineSpec) -> dict[str, str]:
    """What registered objects were built from: the line's features, and the package that computes.

    The on-demand view calls this package by name, so a registry of another version is stale.
    """
    # Digests of lines without a TTL stay what they were before there were any.
    counted = _OF_FEATURES | ({"feature_ttl"} if spec.feature_ttl else set())
    declared = spec.model_dump_json(include=counted)
    digest = hashlib.sha256(declared.encode()).hexdigest()
    return {
        "headrace_line": spec.line,
        "headrace_digest": digest[:16],
        "headrace_version": version("headrace"),
    }


@lru_cache(maxsize=64)
def _parse(line: str) -> LineSpec:
    return LineSpec.model_validate_json(line)


def _request_name(spec: LineSpec, column: str) -> str:
    is_key = any(column in feature.key for feature in spec.windows)
    return f"{column}__request" if is_key else column
