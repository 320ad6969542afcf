"""Request-time features: the only copy, called online by the server and offline by Feast.

A row's answer depends on that row alone, so one row and many give the same bits. Where a
library's vector path could round differently from its scalar path (`log1p`), the scalar one
is used for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import (
    MISSING,
    Bucketize,
    Cross,
    Hash,
    LineSpec,
    Mean,
    Number,
    Ratio,
    RequestFeature,
    Since,
    TimePart,
)
from headrace.errors import InputError
from headrace.events import ARROW_TYPES, input_fields

type_ = pa.types
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_ENCODE_FROM_ROWS = 256  # below, hashing each value costs less than finding the distinct ones
_TIME_PARTS: dict[str, Callable[..., pa.Array]] = {
    "hour_of_day": pc.hour,
    "day_of_week": pc.day_of_week,  # 0 is Monday
}


def hash64(column: pa.Array | pa.ChunkedArray) -> Ints:
    """Hash text or integers to `[0, 2^63)`, shape (n,); null is -1.

    SipHash of the UTF-8 bytes or a 64-bit finaliser of the integer (`pandas.util.hash_array`
    with its default key), shifted right by one. Raises InputError for other types.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if type_.is_null(array.type):
        return np.full(len(array), -1, dtype=np.int64)
    if type_.is_dictionary(array.type):
        array = array.dictionary_decode()
    if type_.is_large_string(array.type):
        array = array.cast(pa.string())
    text = type_.is_string(array.type)
    if not text and not type_.is_integer(array.type):
        raise InputError(
            f"hash64: a column of type {array.type} cannot be hashed; give string or int64 "
            "(wrap a float in bucketize)"
        )
    if text and len(array) >= _ENCODE_FROM_ROWS:
        encoded = array.dictionary_encode()
        distinct = np.append(_hash_plain(encoded.dictionary, text=True), np.int64(-1))
        places = encoded.indices.fill_null(len(distinct) - 1).to_numpy()
        return np.asarray(distinct[places], dtype=np.int64)
    hashes = _hash_plain(_filled(array, "" if text else 0), text=text)
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = -1
    return hashes


def _hash_plain(array: pa.Array, *, text: bool) -> Ints:
    plain = array if text else array.cast(pa.int64())
    values = plain.to_numpy(zero_copy_only=False)
    shifted = pd.util.hash_array(values, categorize=False) >> np.uint64(1)
    return np.asarray(shifted).astype(np.int64)


def cross64(parts: Sequence[Ints]) -> Ints:
    """Mix ids, each of shape (n,), into one id in `[0, 2^63)`; the order of the parts counts.

    Never -1: a missing part (-1) is a value of its own. Each step is the finaliser of
    splitmix64 (Steele, Lea and Flood 2014), a bijection of the state for a given part.
    """
    state = np.full(len(parts[0]), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for part in parts:
        state ^= np.ascontiguousarray(part, dtype=np.int64).view(np.uint64)
        state += np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(30)
        state *= np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(1)).view(np.int64)


def _filled(array: pa.Array, value: object) -> pa.Array:
    return array.fill_null(value) if array.null_count else array  # a call costs 10 µs


def _rehash(ids: Ints) -> Ints:
    return np.where(ids < 0, np.int64(-1), hash64(pa.array(ids)))


def _bucket(x: Floats, boundaries: Sequence[float]) -> Ints:
    index = np.searchsorted(np.asarray(boundaries), x, side="right")
    return np.where(np.isnan(x), np.int64(-1), index)


def log1p(x: Floats) -> Floats:
    """`log1p(max(x, 0))`, shape (n,), by libm."""
    # NumPy's log1p picks a SIMD or a scalar routine by array layout and processor; Arrow's
    # calls libm for every element
    return np.asarray(pc.log1p(pa.array(np.maximum(x, 0.0))).to_numpy(zero_copy_only=False))


def transform(spec: LineSpec, table: pa.Table) -> pa.Table:
    """Compute the model's inputs: columns `events.input_fields(spec)` in order, one row each.

    `table` holds the declared columns, `request_at` (int64 µs or a UTC timestamp) and the
    window features (int64; null means that the key was never seen: the feature's `empty`, which
    is 0 or `MISSING`). Ids are int64 with -1 for missing, numbers float64 with NaN for missing.
    Raises InputError for an absent column or one of the wrong type.
    """
    row_values = _Inputs(spec, table)
    for feature in spec.request_features:
        row_values.add(feature)
    fields = input_fields(spec)
    arrays = [pa.array(row_values.computed[field.name], type=field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


class _Inputs:
    """What later features may read: raw columns (Arrow) and computed ones (NumPy)."""

    def __init__(self, spec: LineSpec, table: pa.Table) -> None:
        self._spec = spec
        self._table = table
        self._windows = {feature.name: feature for feature in spec.windows}
        self._raw: dict[str, pa.Array] = {}
        self.computed: dict[str, Ints | Floats] = {}

    def add(self, feature: RequestFeature) -> None:
        self.computed[feature.name] = self._compute(feature)

    def _compute(self, feature: RequestFeature) -> Ints | Floats:
        match feature:
            case TimePart(kind=kind):
                return self._time_part(kind)
            case Hash(of=of):
                ids = self._id(of, feature.name)
                return _rehash(ids) if of in self.computed else ids
            case Cross(of=parts):
                return cross64([self._id(part, feature.name) for part in parts])
            case Bucketize(of=of, boundaries=boundaries):
                return _bucket(self._number(of, feature.name), boundaries)
            case _:
                return self._compute_number(feature)

    def _compute_number(self, feature: Ratio | Mean | Since | Number) -> Floats:
        match feature:
            case Ratio(of=(above, below), prior=(a, b)):
                numerator = self._number(above, feature.name) + a
                return numerator / (self._number(below, feature.name) + a + b)
            case Mean(of=(above, below), prior=(mean, weight)):
                total = self._number(above, feature.name) + mean * weight
                count = self._number(below, feature.name) + weight
                result = np.full(len(total), np.nan)
                np.divide(total, count, out=result, where=count != 0)
                return result
            case Since(of=of):
                passed_us = pc.subtract(self._request_us(), self._column(of, feature.name))
                passed = _filled(passed_us.cast(pa.float64(), safe=False), np.nan)
                return np.maximum(np.asarray(passed.to_numpy(), np.float64), 0.0) / 1e6
            case Number(kind=kind, of=of):
                x = self._number(of, feature.name)
                return log1p(x) if kind == "log1p" else x

    def _time_part(self, kind: str) -> Ints:
        local = self._request_us().cast(pa.timestamp("us", tz=self._spec.timezone))
        part = _TIME_PARTS[kind](local).cast(pa.int64())
        return np.asarray(_filled(part, -1).to_numpy())

    def _request_us(self) -> pa.Array:
        at = self._column("request_at", "request_at")
        if type_.is_timestamp(at.type):
            return at.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        return at

    def _id(self, name: str, user: str) -> Ints:
        known = self.computed.get(name)
        if known is None:
            column, window = self._column(name, user), self._windows.get(name)
            if window is not None and self._spec.window_kind(window) == "string":
                return np.asarray(_filled(column, -1).to_numpy())  # the kernel has hashed it
            return hash64(column)
        return known.astype(np.int64, copy=False)

    def _number(self, name: str, user: str) -> Floats:
        known = self.computed.get(name)
        if known is None:
            column = self._column(name, user)
            if type_.is_int64(column.type) and not column.null_count:
                return np.asarray(column.to_numpy(), np.float64)  # rounds as Arrow's cast does
            return np.asarray(_filled(column.cast(pa.float64(), safe=False), np.nan).to_numpy())
        if known.dtype == np.int64:
            return np.where(known < 0, np.nan, known.astype(np.float64))
        return known.astype(np.float64, copy=False)

    def _column(self, name: str, user: str) -> pa.Array:
        if name not in self._raw:
            place = self._table.schema.get_field_index(name)
            if place < 0:
                raise InputError(
                    f"request_features.{user}: the table has no column {name!r} "
                    f"(it has {self._table.column_names}); pass the declared columns, "
                    "request_at and the window features"
                )
            column = self._table.column(place)
            whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            self._raw[name] = self._typed(name, whole)
        return self._raw[name]

    def _typed(self, name: str, column: pa.Array) -> pa.Array:
        """Bring back what a trip through pandas loses: nullable ints arrive as floats with NaN."""
        window = self._windows.get(name)
        kind = self._spec.columns.get(name) if window is None else "int"
        if kind is None:
            return column
        if type_.is_floating(column.type) and kind == "int":
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        try:
            typed = column if column.type == ARROW_TYPES[kind] else column.cast(ARROW_TYPES[kind])
        except pa.ArrowInvalid as error:
            raise InputError(
                f"column {name!r} is declared {kind} but holds {column.type}: {error}; "
                "send the declared type"
            ) from error
        if window is None:
            return typed
        if window.empty == 0:
            return _filled(typed, 0)
        return pc.if_else(pc.equal(typed, MISSING), pa.scalar(None, pa.int64()), typed)
