"""From a table of request features to the arrays that a step eats. NumPy and Arrow only.

Ids are mixed with their field's salt into rows of one power-of-two table; -1 (missing) is mixed
like any id and so is a bucket of its own in each field. Numbers are standardised by running
statistics that travel with the state; a missing number (NaN) becomes 0, which is the mean, and
raises its own indicator column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import InputError

MAGNITUDE = 1e12  # larger numbers are clipped, or their squares would overflow the statistics
SPREAD = 5.0  # standardised numbers are clipped to ±SPREAD
_FEW_ROWS: Final = 1024  # of so few, one look at all columns costs less than one at each
_INT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)
_FIRST_SHIFT, _SECOND_SHIFT, _LAST_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def field_salt(seed: int, field: str) -> int:
    """64-bit salt of a field; depends on the line's seed and the field's name, not its position."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{field}".encode(), digest_size=8).digest())


def mix(
    ids: Sequence[NDArray[np.int64]], salts: NDArray[np.uint64], bits: int
) -> NDArray[np.int32]:
    """Rows in [0, 2**bits), shape (n, fields), for one column of ids a field.

    Call it for a batch at a time: what fits the processor's cache is mixed four times as fast.
    """
    keys = mixed_keys(ids, salts)
    keys >>= np.uint64(64 - bits)
    return keys.T.astype(np.int32, order="C")


def mixed_keys(ids: Sequence[NDArray[np.int64]], salts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys (fields, n): splitmix64's finaliser on id + salt, one to one within a field."""
    mixed = np.concatenate(ids).view(np.uint64).reshape(len(ids), len(ids[0]))
    mixed += salts[:, None]
    mixed ^= mixed >> _FIRST_SHIFT
    mixed *= _FIRST_FACTOR
    mixed ^= mixed >> _SECOND_SHIFT
    mixed *= _SECOND_FACTOR
    mixed ^= mixed >> _LAST_SHIFT
    return mixed


Inputs: TypeAlias = pa.Table | Mapping[str, NDArray[np.int64] | NDArray[np.float64]]
"""Rows by column: a table, or arrays (n,) of int64 ids and float64 numbers without nulls."""


def rows_of(inputs: Inputs) -> int:
    """How many rows there are."""
    return inputs.num_rows if isinstance(inputs, pa.Table) else len(next(iter(inputs.values())))


def read_ids(table: Inputs, names: Sequence[str]) -> list[NDArray[Any]]:
    """Id columns, each int64 (n,); null reads as -1. Raises `InputError` naming the field."""
    if not isinstance(table, pa.Table):
        return [_array(table, name, _INT64) for name in names]
    ids = []
    for name in names:
        column = _column(table, name)
        if not pa.types.is_int64(column.type):
            raise InputError(
                f"{name}: ids must be int64, got {column.type}; use requests.transform"
            )
        ids.append((column.fill_null(-1) if column.null_count else column).to_numpy())
    return ids


def read_numbers(table: Inputs, names: Sequence[str]) -> list[NDArray[Any]]:
    """Number columns, each float64 (n,), missing (null or NaN) as NaN."""
    if isinstance(table, pa.Table):
        return [_floats(table, name, pa.float64()) for name in names]
    return [_array(table, name, _FLOAT64) for name in names]


def refuse_infinite(numbers: Sequence[NDArray[np.float64]], names: Sequence[str]) -> None:
    """Raise `InputError` naming the column for an infinite number."""
    if not names or (len(numbers[0]) <= _FEW_ROWS and not np.isinf(np.concatenate(numbers)).any()):
        return
    for name, values in zip(names, numbers, strict=True):
        if np.isinf(values).any():
            row = int(np.argmax(np.isinf(values)))
            raise InputError(
                f"{name}: {values[row]} in row {row}; send a finite number, or NaN for missing"
            )


def _array(
    columns: Mapping[str, NDArray[np.int64] | NDArray[np.float64]], name: str, kind: np.dtype[Any]
) -> NDArray[Any]:
    values = columns.get(name)
    if values is None or values.dtype != kind:
        found = "missing" if values is None else f"of {values.dtype}"
        raise InputError(f"{name}: column is {found}; got {sorted(columns)}")
    return values


def side_by_side(
    numbers: Sequence[NDArray[np.float64]], rows: slice, names: Sequence[str]
) -> NDArray[np.float64]:
    """Those rows of the number columns as (n, numbers), clipped to ±MAGNITUDE.

    Raises `InputError` naming the column for an infinite number.
    """
    if not numbers:
        return np.empty((rows.stop - rows.start, 0))
    found = np.concatenate(rows_between(numbers, rows)).reshape(-1, rows.stop - rows.start)
    # a NaN counts as 0
    if np.fmax.reduce(np.abs(found), axis=None, initial=0.0) > MAGNITUDE:
        refuse_infinite(numbers, names)
        np.clip(found, -MAGNITUDE, MAGNITUDE, out=found)
    return found.T


def rows_between(columns: Sequence[NDArray[Any]], rows: slice) -> Sequence[NDArray[Any]]:
    """Those rows of each column, one column at least."""
    if rows.stop - rows.start == len(columns[0]):
        return columns
    return [column[rows] for column in columns]


def read_weights(table: pa.Table, name: str) -> NDArray[np.float32]:
    """A weight column as float32 (n,). Raises `InputError` for a missing or infinite weight."""
    values = _floats(table, name, pa.float32())
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{name}: {values[row]} in row {row}; a weight must be a finite number")
    return values


def read_times(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A time column, a timestamp or int64, as µs (n,). Raises `InputError` for a missing time."""
    column = _column(table, name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    if not pa.types.is_int64(column.type) or column.null_count:
        raise InputError(
            f"{name}: must be a timestamp or int64 µs in every row, got {column.type} with "
            f"{column.null_count} missing; expire_after counts from it"
        )
    times: NDArray[np.int64] = column.to_numpy()
    return times


def _floats(table: pa.Table, name: str, wanted: pa.DataType) -> NDArray[Any]:
    column = _column(table, name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise InputError(f"{name}: must be a number, got {column.type}; use requests.transform")
    if column.type != wanted:
        column = column.cast(wanted, safe=False)
    values: NDArray[Any] = (
        column.fill_null(float("nan")) if column.null_count else column
    ).to_numpy()
    return values


def _column(table: pa.Table, name: str) -> pa.Array | pa.ChunkedArray:
    place = table.schema.get_field_index(name)
    if place < 0:
        raise InputError(f"{name}: column is missing; got {table.column_names}")
    column = table.column(place)
    return column.chunk(0) if column.num_chunks == 1 else column  # reads without a copy


@dataclass
class Statistics:
    """Running statistics that a step needs before its gradient; float64, part of the state.

    moments: (3, numbers), rows weight, mean, sum of squared deviations (Chan's parallel update).
    classes: (2,), positive and negative weight seen; (4,) with those of click-and-conversion.
    """

    moments: NDArray[np.float64]
    classes: NDArray[np.float64]
    _scale: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    _offsets: NDArray[np.float32] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @classmethod
    def empty(cls, numbers: int, tasks: int = 1) -> Statistics:
        """Statistics that have seen nothing."""
        return cls(np.zeros((3, numbers)), np.zeros(2 * tasks))

    def see(self, numbers: NDArray[np.float64], weights: NDArray[np.float32]) -> None:
        """Add a batch; weights: (n, 2) positive and negative, (n, 4) of two tasks.

        A correction (1, -1) moves its class but is no second look at the row.
        """
        self.classes += weights.sum(axis=0, dtype=np.float64)
        looks = np.maximum(weights[:, :2].sum(axis=1, dtype=np.float64), 0.0)
        present = ~np.isnan(numbers)
        added = np.einsum("n,nf->f", looks, present)
        divisor = np.where(added > 0, added, 1.0)
        mean = np.einsum("n,nf->f", looks, np.where(present, numbers, 0.0)) / divisor
        deviations = np.where(present, numbers - mean, 0.0)
        deviations *= deviations
        squares = np.einsum("n,nf->f", looks, deviations)
        seen, old_mean, old_squares = self.moments
        total = seen + added
        share = added / np.where(total > 0, total, 1.0)
        shift = mean - old_mean
        self._scale = self._offsets = None
        self.moments = np.stack(
            [total, old_mean + shift * share, old_squares + squares + shift**2 * seen * share]
        )

    def offset(self) -> np.float32:
        """Log odds of the positive class so far, add-one smoothed: where a row's logit starts.

        Without it, the first batches of a line of rare positives would push every weight down
        with gradients so large that adaptive rates never recover.
        """
        positive, negative = np.maximum(self.classes[:2], 0.0) + 1.0
        return np.float32(np.log(positive / negative))

    def conversion_offset(self) -> np.float32:
        """Log odds of a conversion among the clicks so far, add-one smoothed."""
        clicks, _, converted, _ = np.maximum(self.classes, 0.0)
        return np.float32(np.log((converted + 1.0) / (max(clicks - converted, 0.0) + 1.0)))

    def offsets(self) -> NDArray[np.float32]:
        """(tasks,): that of the click, then that of the conversion where it is counted."""
        if self._offsets is None:  # who predicts asks again and again
            later = [self.conversion_offset()] if self.classes.size > 2 else []
            self._offsets = np.array([self.offset(), *later], np.float32)
        return self._offsets

    def scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a number is standardised by: mean and deviation, each (numbers,)."""
        if self._scale is None:
            seen, mean, squares = self.moments
            deviation = np.where(seen > 0, np.sqrt(squares / np.maximum(seen, 1e-9)), 1.0)
            self._scale = mean, np.maximum(deviation, 1e-6)
        return self._scale

    def design(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n, 1 + 2·numbers) float32: a constant 1, the standardised numbers, their indicators."""
        mean, deviation = self.scale()
        missing, size = np.isnan(numbers), numbers.shape[1]
        scaled = numbers - mean
        scaled /= deviation
        np.copyto(scaled, 0.0, where=missing)
        np.maximum(scaled, -SPREAD, out=scaled)  # `np.clip` would do the same in twice the time
        columns = np.empty((len(numbers), 1 + 2 * size), np.float32)
        columns[:, 0] = 1.0
        np.minimum(scaled, SPREAD, out=columns[:, 1 : 1 + size])
        columns[:, 1 + size :] = missing
        return columns
