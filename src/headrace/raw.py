"""What features are computed from, column by column: a table, or the candidates of a request.

A table of Arrow is made for many rows. To make one of the fifty of a request, and to take it apart
again, costs more than to compute with them; those stay the values that the request holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import ARROW_TYPES
from headrace.hashes import hash64, hash_texts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Declared columns of a line by name, lists of str, int or float, None where missing; and when
    they are scored, int64 us.
    """

    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    at_us: int = 0

    @classmethod
    def together(cls, parts: Sequence[Candidates]) -> Candidates:
        """The candidates of some requests, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {
            name: list(chain.from_iterable(part.columns[name] for part in parts))
            for name in parts[0].columns
        }
        return cls(columns, sum(part.num_rows for part in parts))

    def at(self, at_us: int) -> Candidates:
        """The same, scored then."""
        return replace(self, at_us=at_us)


class Raw(Protocol):
    """Columns as request features read them. `user` names the one that does, for the error."""

    @property
    def num_rows(self) -> int: ...

    def ids(self, name: str, user: str) -> Ints:
        """`hash64` of a declared column, (n,)."""

    def numbers(self, name: str, user: str) -> Floats:
        """A declared column, (n,), NaN where missing."""

    def window(self, name: str, user: str) -> Ints:
        """A window feature, (n,), its `empty` where the key was never seen."""

    def moments(self) -> tuple[Ints, NDArray[np.bool_] | None]:
        """`request_at` as us, (n,), and where it is missing (None: nowhere)."""

    def moment(self) -> int | None:
        """The one of all rows, None where there is none."""


def raw_of(spec: LineSpec, rows: pa.Table | Candidates) -> Raw:
    """Whatever holds them."""
    return _OfCandidates(spec, rows) if isinstance(rows, Candidates) else _OfTable(spec, rows)


class _OfCandidates:
    def __init__(self, spec: LineSpec, candidates: Candidates) -> None:
        self._spec, self._held, self.num_rows = spec, candidates, candidates.num_rows

    def ids(self, name: str, user: str) -> Ints:
        values, kind = self._values(name, user), self._spec.columns[name]
        return (
            hash_texts(values) if kind == "string" else hash64(pa.array(values, ARROW_TYPES[kind]))
        )

    def numbers(self, name: str, user: str) -> Floats:
        return np.array(self._values(name, user), np.float64)

    def window(self, name: str, user: str) -> Ints:
        raise _absent(name, user, list(self._held.columns))

    def moments(self) -> tuple[Ints, None]:
        return np.full(self.num_rows, self._held.at_us), None

    def moment(self) -> int:
        return self._held.at_us

    def _values(self, name: str, user: str) -> Sequence[Any]:
        try:
            return self._held.columns[name]
        except KeyError:
            raise _absent(name, user, list(self._held.columns)) from None


class _OfTable:
    def __init__(self, spec: LineSpec, table: pa.Table) -> None:
        self._spec, self._table, self.num_rows = spec, table, table.num_rows
        self._windows = spec.window_features
        self._columns: dict[str, pa.Array] = {}

    def ids(self, name: str, user: str) -> Ints:
        return hash64(self._column(name, user))

    def numbers(self, name: str, user: str) -> Floats:
        column = self._column(name, user)
        if pa.types.is_int64(column.type) and not column.null_count:
            return np.asarray(column.to_numpy(), np.float64)  # rounds as Arrow's cast does
        return np.asarray(_filled(column.cast(pa.float64(), safe=False), np.nan).to_numpy())

    def window(self, name: str, user: str) -> Ints:
        filled = _filled(self._column(name, user), self._windows[name].empty)
        return np.asarray(filled.to_numpy(zero_copy_only=False), np.int64)

    def moments(self) -> tuple[Ints, NDArray[np.bool_] | None]:
        at = self._column("request_at", "request_at")
        if pa.types.is_timestamp(at.type):
            at = at.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        if not at.null_count:
            return at.to_numpy(), None
        return at.fill_null(0).to_numpy(), at.is_null().to_numpy(zero_copy_only=False)

    def moment(self) -> int | None:
        at_us, missing = self.moments()
        one = len(at_us) and missing is None and (at_us == at_us[0]).all()
        return int(at_us[0]) if one else None

    def _column(self, name: str, user: str) -> pa.Array:
        if name not in self._columns:
            place = self._table.schema.get_field_index(name)
            if place < 0:
                raise _absent(name, user, self._table.column_names)
            column = self._table.column(place)
            whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            self._columns[name] = self._typed(name, whole)
        return self._columns[name]

    def _typed(self, name: str, column: pa.Array) -> pa.Array:
        """Bring back what a trip through pandas loses: nullable ints arrive as floats with NaN."""
        kind = "int" if name in self._windows else self._spec.columns.get(name)
        if kind is None:
            return column
        if pa.types.is_floating(column.type) and kind == "int":
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        try:
            return column if column.type == ARROW_TYPES[kind] else column.cast(ARROW_TYPES[kind])
        except pa.ArrowInvalid as error:
            raise InputError(
                f"column {name!r} is declared {kind} but holds {column.type}: {error}; "
                "send the declared type"
            ) from error


def _absent(name: str, user: str, names: Sequence[str]) -> InputError:
    return InputError(
        f"request_features.{user}: there is no column {name!r} (there are {names}); pass the "
        "declared columns, request_at and the window features"
    )


def _filled(array: pa.Array, value: object) -> pa.Array:
    return array.fill_null(value) if array.null_count else array  # a call costs 10 µs
