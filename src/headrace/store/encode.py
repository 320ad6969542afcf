"""Feast's bytes for keys, values and times, built by column from Arrow.

Feast builds a message for each value of each row; here a message is built for each different
value of a column. The bytes are the same, so that every reader of Feast's format finds them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.protos.feast.types.Value_pb2 import Value, ValueType
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.declaration import MISSING

Encoded = TypeVar("Encoded")


def entity_keys(view: FeatureView, rows: pa.Table) -> list[bytes]:
    """What Feast's `serialize_entity_key` (version 3) gives for each row's join keys."""
    names = tuple(sorted(view.join_keys))
    columns = [rows[name].to_pylist() for name in names]
    return keys_of(names, list(zip(*columns, strict=True)))


def keys_of(names: tuple[str, ...], rows: Iterable[tuple[str | int, ...]]) -> list[bytes]:
    """The same from the values of sorted join keys."""
    prefix = _prefix(names)
    if len(names) == 1:
        return [_key(prefix, value) for (value,) in rows]
    return [b"".join((prefix, *map(_key_part, row))) for row in rows]


@lru_cache(maxsize=1 << 16)
def _key(prefix: bytes, value: str | int) -> bytes:
    return prefix + _key_part(value)


def int_values(column: pa.ChunkedArray) -> list[bytes]:
    """Each int64 as a serialised `Value`."""
    return by_value(column, lambda value: Value(int64_val=value).SerializeToString())


@lru_cache(maxsize=1 << 16)
def int_of(encoded: bytes | None) -> int:
    """The int64 of a serialised `Value`, `MISSING` of none; counters repeat, so most are known."""
    value: int = MISSING if encoded is None else Value.FromString(encoded).int64_val
    return value


def timestamps(column: pa.ChunkedArray) -> list[bytes]:
    """Each moment (timestamp us UTC) as a serialised `Timestamp`, exact to the microsecond."""
    return by_value(column.cast(pa.int64()), _timestamp)


def by_value(column: pa.ChunkedArray, encode: Callable[..., Encoded]) -> list[Encoded]:
    """`encode` of each value, called once for each different one. The column has no nulls."""
    encoded = column.combine_chunks().dictionary_encode()
    known = [encode(value) for value in encoded.dictionary.to_pylist()]
    return [known[place] for place in encoded.indices.to_pylist()]


@lru_cache(maxsize=256)
def _prefix(names: tuple[str, ...]) -> bytes:
    prefix: bytes = serialize_entity_key_prefix(list(names), entity_key_serialization_version=3)
    return prefix


@lru_cache(maxsize=1 << 16)
def _key_part(value: str | int) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return struct.pack("<II", ValueType.STRING, len(text)) + text
    return struct.pack("<IIq", ValueType.INT64, 8, value)


def _timestamp(moment_us: int) -> bytes:
    moment = Timestamp()
    moment.FromMicroseconds(moment_us)
    encoded: bytes = moment.SerializeToString()
    return encoded
