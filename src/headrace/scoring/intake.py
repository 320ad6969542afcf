"""What a row of a file has to be: the line's columns, its moment; and why a row is refused.

Values are taken where nothing is lost: any width of integer, integers that came as floats because
a null stood among them, text that reads as a number. What cannot be taken refuses its row, as the
server refuses the request; a column that is absent or of a wrong kind refuses the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import TIME, micros
from headrace.scoring.answers import answer_fields, as_served
from headrace.serving.payload import MAX_TEXT

_EXACT: Final = 2**53  # beyond, a float is no exact integer
_INT64: Final = range(-(2**63), 2**63)

types = pa.types


class Refused(NamedTuple):
    """A row that was not taken: its place in the file from 1 (None: not even a row), and why."""

    row: int | None
    reason: str
    raw: Any


class _Typed(NamedTuple):
    column: pa.Array
    wrong: dict[int, str]


class Intake:
    """Checks the rows of one file for one line."""

    def __init__(self, spec: LineSpec, schema: pa.Schema, at_column: str | None, what: str) -> None:
        """Raises `InputError` for columns that are absent, twice there, taken or of a wrong kind.

        `what` names the file in messages.
        """
        self._spec, self._at = spec, at_column
        names = schema.names
        asked = [*spec.columns, *([] if at_column is None else [at_column])]
        for name in asked:
            if name not in names:
                raise InputError(
                    f"{what}: no column {name!r} (it has {names}); every row needs the columns of "
                    f"line {spec.line!r}: {', '.join(asked)}"
                )
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InputError(f"{what}: column {min(twice)!r} is there twice; rename one")
        taken = [field.name for field in answer_fields(spec) if field.name in names]
        if taken:
            raise InputError(
                f"{what}: column {taken[0]!r} is what a score is told in; rename or drop it"
            )
        self._times = {} if at_column is None else {at_column: False}  # by name: null allowed?
        if at_column is not None and as_served(spec, names):
            self._times |= {f"{view}__at": True for view in spec.views}
        for name in {*spec.columns, *self._times}:
            self._check_type(what, name, schema.field(name).type)

    def _check_type(self, what: str, name: str, given: pa.DataType) -> None:
        if types.is_dictionary(given):
            given = given.value_type
        plain = types.is_null(given) or types.is_string(given) or types.is_large_string(given)
        wanted = "timestamp with a zone, ISO 8601 text or microseconds"
        if name in self._times:
            zoned = types.is_timestamp(given) and given.tz is not None
            fits = plain or zoned or types.is_int64(given)
        else:
            kind = wanted = self._spec.columns[name]
            number = types.is_integer(given) or types.is_floating(given)
            fits = plain or (kind != "string" and number)
        if not fits:
            raise InputError(f"{what}: column {name!r} is of type {given}; write it as {wanted}")

    def take(self, rows: pa.Table, first: int) -> tuple[pa.Table, list[Refused]]:
        """The rows that can be scored, and those refused; `first` is the place of the first one.

        Declared columns come back in the line's types, moments as `events.TIME`, others as given.
        """
        wrong: dict[int, str] = {}
        kept = rows
        for place, name in enumerate(rows.column_names):
            if name in self._times:
                typed = _moments(name, _written(_plain(rows[name])), nulls=self._times[name])
            elif name in self._spec.columns:
                typed = _READ[self._spec.columns[name]](name, _plain(rows[name]))
            else:
                continue
            kept = kept.set_column(place, name, typed.column)
            wrong = typed.wrong | wrong
        if wrong:
            good = np.ones(rows.num_rows, dtype=np.bool_)
            good[list(wrong)] = False
            kept = kept.filter(pa.array(good))
        refused = [
            Refused(first + place, wrong[place], rows.slice(place, 1).to_pylist()[0])
            for place in sorted(wrong)
        ]
        return kept.combine_chunks(), refused


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def _written(column: pa.Array) -> pa.Array:
    """The column, null where a number or time was written as a text without a letter."""
    if not types.is_string(column.type) and not types.is_large_string(column.type):
        return column
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)


def _text(name: str, column: pa.Array) -> _Typed:
    typed = column.cast(pa.string())
    try:
        typed.validate(full=True)
    except pa.ArrowInvalid as problem:
        raise InputError(f"column {name!r} holds what is no UTF-8 ({problem}); mend it") from None
    long = pc.fill_null(pc.greater(pc.utf8_length(typed), MAX_TEXT), False)
    places = np.flatnonzero(long.to_numpy(zero_copy_only=False))
    told = f"{name}: longer than {MAX_TEXT} characters"
    return _Typed(typed, dict.fromkeys(places.tolist(), told))


def _ints(name: str, column: pa.Array) -> _Typed:
    column = _written(column)
    try:
        if types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            if pc.any(pc.greater(pc.abs(column), float(_EXACT))).as_py():
                raise pa.ArrowInvalid("beyond what a float can tell")
        return _Typed(column.cast(pa.int64()), {})
    except pa.ArrowInvalid:
        return _each(name, column, pa.int64(), _int)


def _int(value: Any) -> int:
    if isinstance(value, float) and not (value.is_integer() and abs(value) <= _EXACT):
        raise ValueError
    number = int(value)
    if number not in _INT64:
        raise ValueError
    return number


def _floats(name: str, column: pa.Array) -> _Typed:
    column = _written(column)
    try:
        typed = column.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        return _each(name, column, pa.float64(), _float)
    if pc.any(pc.is_inf(typed)).as_py():
        return _each(name, column, pa.float64(), _float)
    return _Typed(pc.if_else(pc.is_nan(typed), pa.scalar(None, pa.float64()), typed), {})


def _float(value: Any) -> float | None:
    number = float(value)
    if math.isinf(number):
        raise ValueError
    return None if math.isnan(number) else number


def _each(name: str, column: pa.Array, kind: pa.DataType, read: Callable[[Any], Any]) -> _Typed:
    """Value by value, where not all can be read at once."""
    values: list[Any] = []
    wrong: dict[int, str] = {}
    said = "a 64-bit integer" if types.is_integer(kind) else "a finite number"
    for place, value in enumerate(column.to_pylist()):
        try:
            values.append(None if value is None else read(value))
        except (ValueError, OverflowError):
            values.append(None)
            wrong[place] = f"{name}: {value!r} is not {said}"
    return _Typed(pa.array(values, kind), wrong)


def _moments(name: str, column: pa.Array, *, nulls: bool) -> _Typed:
    wrong: dict[int, str] = {}
    if types.is_timestamp(column.type):
        column = column.cast(TIME, safe=False).cast(pa.int64())
    if types.is_int64(column.type):
        values = column.to_pylist() if column.null_count else None
    else:
        values = [_moment(value) for value in column.to_pylist()]
        column = pa.array([None if isinstance(v, str) else v for v in values], pa.int64())
    if values is not None:
        for place, value in enumerate(values):
            if isinstance(value, str):
                wrong[place] = f"{name}: {value}"
            elif value is None and not nulls:
                wrong[place] = f"{name}: missing; say when the row was asked"
    before = np.flatnonzero(pc.fill_null(pc.less(column, 0), False).to_numpy(zero_copy_only=False))
    wrong |= dict.fromkeys(before.tolist(), f"{name}: lies before 1970")
    return _Typed(column.cast(TIME), wrong)


def _moment(value: Any) -> int | str | None:
    """Microseconds of a text, or what is wrong with it."""
    if value is None:
        return None
    if value.isdecimal():
        return int(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return f"{value!r} is not an ISO 8601 time"
    if moment.tzinfo is None:
        return f"{value!r} has no zone; add Z or an offset"
    return micros(moment)


_READ: Final[dict[str, Callable[[str, pa.Array], _Typed]]] = {
    "string": _text,
    "int": _ints,
    "float": _floats,
}
