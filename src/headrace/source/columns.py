"""Times and labels of a file: the SQL that reads them, and the checks on what came back."""

from __future__ import annotations

from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import TimeSpec
from headrace.errors import InputError
from headrace.source.sql import fitted, quote_text
from headrace.source.times import to_utc

Wanted = dict[str, tuple[str, str]]
# 1900-01-01 and 2200-01-01: a time outside was written in another unit than declared
_OLDEST_US: Final = -2_208_988_800_000_000
_NEWEST_US: Final = 7_258_118_400_000_000
_UNIX_US: Final = {"unix_s": 1_000_000, "unix_ms": 1_000, "unix_us": 1}
_ZONE: Final = r"(?i)\d{1,2}:\d{2}.*(Z|UTC|GMT|[+-]\d{2}(:?\d{2})?)$"


def time_columns(
    con: duckdb.DuckDBPyConnection, stage: str, prefix: str, where: str, time: TimeSpec
) -> Wanted:
    """SQL for `<prefix>_clock` (µs, null: unreadable), `_zoned` (it is UTC) and `_text`."""
    sql, kind = fitted(con, stage, where, time.expression)
    text = f"trim(CAST({sql} AS VARCHAR))"
    zoned = "false"
    if kind.startswith(("TIMESTAMP", "DATE")):
        zoned = "true" if kind == "TIMESTAMP WITH TIME ZONE" else "false"
        clock = f"epoch_us({sql})" if zoned == "true" else f"epoch_us(CAST({sql} AS TIMESTAMP))"
    elif time.format in _UNIX_US:
        zoned = "true"
        # a decimal: a double cannot hold all microseconds of unix_us times a factor
        number = f"TRY_CAST({text} AS DECIMAL(28, 6))"
        clock = f"TRY(CAST({number} * {_UNIX_US[time.format]} AS BIGINT))"
    elif time.format in ("iso", "timestamp"):
        # CAST(… AS TIMESTAMP) would drop an offset silently
        zoned = f"coalesce(regexp_matches({text}, {quote_text(_ZONE)}), false)"
        clock = (
            f"CASE WHEN {zoned} THEN epoch_us(TRY_CAST({text} AS TIMESTAMPTZ)) "
            f"ELSE epoch_us(TRY_CAST({text} AS TIMESTAMP)) END"
        )
    else:
        zoned = "true" if "%z" in time.format or "%Z" in time.format else "false"
        clock = f"epoch_us(try_strptime({text}, {quote_text(time.format)}))"
    return {
        f"{prefix}_clock": (where, clock),
        f"{prefix}_zoned": (where, zoned),
        f"{prefix}_text": (where, text),
    }


def read_times(
    table: pa.Table, prefix: str, timezone: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """UTC microseconds of the columns that `time_columns` made, and which rows have one."""
    column = table[f"{prefix}_clock"]
    clock = ints(pc.fill_null(column, 0))
    given = ~bools(pc.is_null(column)) & (clock >= _OLDEST_US) & (clock <= _NEWEST_US)
    zoned = bools(table[f"{prefix}_zoned"])
    return to_utc(np.where(given, clock, 0), zoned | ~given, timezone), given


def expect_times(
    table: pa.Table, prefix: str, given: NDArray[np.bool_], where: str, time: TimeSpec
) -> list[str]:
    """Describe the rows without a time. Raises `InputError` when they are more than half of all."""
    bad = np.flatnonzero(~given)
    rows = ints(table["__row"])
    texts = table[f"{prefix}_text"]
    shown = [
        f"row {rows[i]}: {where} {texts[int(i)].as_py()!r} is not a time of format {time.format!r}"
        for i in bad[:5]
    ]
    if len(bad) * 2 > len(given):
        raise InputError(
            f"{len(bad)} of {len(given)} rows have no readable time ({shown[0]}); correct "
            f"{where}'s expression {time.expression!r} or its format"
        )
    return shown


def label_columns(con: duckdb.DuckDBPyConnection, stage: str, where: str, value: str) -> Wanted:
    """SQL for `label` (double: 0, 1, null, or what it should not be) and `label_text`."""
    sql, kind = fitted(con, stage, where, value)
    text = f"CAST({sql} AS VARCHAR)"
    number = f"TRY_CAST({text} AS DOUBLE)"
    if kind == "BOOLEAN":
        number = f"CAST({sql} AS DOUBLE)"
    elif kind == "VARCHAR":
        truth = f"lower(trim({text}))"
        number = (
            f"CASE WHEN {truth} IN ('true') THEN 1.0 WHEN {truth} IN ('false') THEN 0.0 "
            f"ELSE TRY_CAST({text} AS DOUBLE) END"
        )
    return {"label": (where, f"CAST({number} AS DOUBLE)"), "label_text": (where, text)}


def read_labels(table: pa.Table, where: str, value: str) -> NDArray[np.float64]:
    """Labels as 0, 1 or NaN (none). Raises `InputError` naming what else stands there."""
    label = np.asarray(table["label"].to_numpy(), dtype=np.float64)
    given = ~bools(pc.is_null(table["label_text"]))
    wrong = given & ~np.isin(label, (0.0, 1.0))
    if wrong.any():
        texts = table["label_text"].filter(pa.array(wrong)).unique().to_pylist()
        listed = ", ".join(repr(text) for text in texts[:4])
        raise InputError(
            f"{where}: {value!r} gives {listed} in {int(wrong.sum())} rows, but a label is 0, 1 or "
            f"NULL; compare, for example `value: ({value}) = {quote_text(str(texts[0]))}`"
        )
    return label


def ints(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """A column without nulls as int64."""
    return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)


def bools(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """A column without nulls as booleans."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.bool_)
