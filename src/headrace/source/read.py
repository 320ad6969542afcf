"""Read a line's files into one table of log records, each at the time when it became known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import FileSource, LabelInRow, LineSpec, Outcomes, TimeSpec
from headrace.errors import InputError
from headrace.events import IMPRESSION, TIME, event_schema
from headrace.source import columns
from headrace.source.counts import SourceCounts
from headrace.source.files import find_files, load_table
from headrace.source.sql import fitted, select, shape
from headrace.source.times import draw_delays

_SHOWN: Final = 5
_SQL_TYPES: Final = {"string": "VARCHAR", "int": "BIGINT", "float": "DOUBLE"}
_LABEL: Final = "source.label"
_SHOWN_FILE: Final = "source.impressions"
_SECOND_FILE: Final = "source.engagements"


def read_events(spec: LineSpec, data_dir: Path) -> tuple[pa.Table, SourceCounts]:
    """Read a line's files into one table of `events.event_schema` in knowledge-time order.

    `arrival_at` is the knowledge time: an impression's own time, and the time at which its
    label became known. Ties: impressions first, then the order of the file.
    Raises `InputError` for a file, a column, a time or a label that does not fit the YAML.
    """
    if not isinstance(spec.source, FileSource):
        raise InputError(
            f"line {spec.line!r} has source.kind 'live', so there is no file to read; "
            "declare source.kind: files"
        )
    counts = SourceCounts()
    outcomes = spec.source.engagements
    with duckdb.connect(":memory:") as con:
        _prepare(con, spec.source, data_dir, counts)
        shown = _read_impressions(con, spec, spec.source, counts)
        if outcomes is not None:
            known = _read_outcomes(con, spec, outcomes, counts)
        elif spec.source.label is not None:
            known = _labels_in_row(spec, spec.source.label, shown, counts)
    counts.impressions, counts.engagements = shown.num_rows, known.num_rows
    ids = shown["impression_id"]
    counts.duplicates = shown.num_rows - pc.count_distinct(ids).as_py()
    absent = pc.invert(pc.is_in(known["impression_id"], value_set=ids.combine_chunks()))
    counts.unmatched = pc.sum(absent).as_py() or 0
    at_us = columns.ints(shown["at_us"])
    counts.unsorted = int((at_us < np.maximum.accumulate(at_us)).sum())
    return _merge(spec, shown, known), counts


def _prepare(
    con: duckdb.DuckDBPyConnection, source: FileSource, data_dir: Path, counts: SourceCounts
) -> None:
    """Load the files, then shut DuckDB off from everything outside before the YAML's SQL runs."""
    con.execute("SET threads = 1").fetchall()  # rows stay in the order of the file
    con.execute("SET TimeZone = 'UTC'").fetchall()
    loaded = load_table(
        con, source.impressions, find_files(source.impressions, data_dir), "impressions"
    )
    counts.rows, counts.unparsable = loaded.rows, loaded.unparsable
    counts.malformed = loaded.unparsable
    counts.malformed_first = loaded.shown[:_SHOWN]
    if source.engagements is not None:
        paths = find_files(source.engagements, data_dir)
        second = load_table(con, source.engagements, paths, "engagements")
        counts.engagement_file = {"rows": second.rows, "malformed": second.unparsable}
        counts.malformed_first += second.shown[:_SHOWN]
    con.execute("SET enable_external_access = false").fetchall()
    con.execute("SET lock_configuration = true").fetchall()


def _read_impressions(
    con: duckdb.DuckDBPyConnection, spec: LineSpec, source: FileSource, counts: SourceCounts
) -> pa.Table:
    """Columns: impression_id, at_us, the declared columns, and what a label in the row needs."""
    file = source.impressions
    stage, counts.excluded, counts.empty = shape(con, file, "impressions")
    wanted = _identity(con, stage, f"{_SHOWN_FILE}.id", file.id)
    wanted |= columns.time_columns(con, stage, "at", f"{_SHOWN_FILE}.time", file.time)
    for name, kind in spec.columns.items():
        where = f"{_SHOWN_FILE}.columns.{name}"
        sql, _ = fitted(con, stage, where, file.columns.get(name, "NULL"))
        wanted[name] = (where, f"TRY_CAST({sql} AS {_SQL_TYPES[kind]})")
        wanted[f"given {name}"] = (where, f"({sql} IS NOT NULL)")
    if source.label is not None:
        wanted |= _label_in_row_columns(con, stage, source.label)
    table = select(con, stage, wanted)
    counts.records = table.num_rows
    for name in spec.columns:
        lost = pc.sum(table[f"given {name}"]).as_py() or 0
        lost -= table.num_rows - table[name].null_count
        if lost:
            counts.unreadable_values[name] = lost
    table, bad = _with_times(table, {"at": file.time}, _SHOWN_FILE, spec.timezone)
    counts.malformed += bad.rows
    counts.malformed_first = (counts.malformed_first + bad.shown)[:_SHOWN]
    return table


def _identity(
    con: duckdb.DuckDBPyConnection, stage: str, where: str, expression: str | None
) -> columns.Wanted:
    """The impression id; the number of the row where none is declared."""
    sql = "__row" if expression is None else fitted(con, stage, where, expression)[0]
    return {"impression_id": (where, f"CAST({sql} AS VARCHAR)")}


def _label_in_row_columns(
    con: duckdb.DuckDBPyConnection, stage: str, label: LabelInRow
) -> columns.Wanted:
    wanted = columns.label_columns(con, stage, f"{_LABEL}.value", label.value)
    if label.known_at is not None:
        where = f"{_LABEL}.known_at"
        wanted |= columns.time_columns(con, stage, "known", where, label.known_at)
    if label.delay_s is not None:
        where = f"{_LABEL}.delay_s"
        sql, _ = fitted(con, stage, where, label.delay_s)
        wanted["delay_s"] = (where, f"TRY_CAST({sql} AS DOUBLE)")
    return wanted


def _read_outcomes(
    con: duckdb.DuckDBPyConnection, spec: LineSpec, file: Outcomes, counts: SourceCounts
) -> pa.Table:
    """Columns: impression_id, at_us (event time), known_us and value of the second file."""
    stage, excluded, empty = shape(con, file, "engagements")
    where, known_at = f"{_SECOND_FILE}.value", file.known_at or file.time
    wanted = _identity(con, stage, f"{_SECOND_FILE}.impression_id", file.impression_id)
    wanted |= columns.label_columns(con, stage, where, file.value)
    wanted |= columns.time_columns(con, stage, "at", f"{_SECOND_FILE}.time", file.time)
    wanted |= columns.time_columns(con, stage, "known", f"{_SECOND_FILE}.known_at", known_at)
    table = select(con, stage, wanted)
    times = {"at": file.time, "known": known_at}
    table, bad = _with_times(table, times, _SECOND_FILE, spec.timezone)
    value = columns.read_labels(table, where, file.value)
    keep = ~np.isnan(value)
    counts.unlabelled = int((~keep).sum())
    if spec.label.outcome == "implicit":
        counts.silent = int((value == 0).sum())
        keep &= value != 0
    detail = counts.engagement_file
    detail |= {"excluded": excluded, "empty": empty, "records": table.num_rows}
    detail["malformed"] += bad.rows
    counts.malformed_first = (counts.malformed_first + bad.shown)[: 2 * _SHOWN]
    at_us = columns.ints(table["at_us"])[keep]
    known_us = columns.ints(table["known_us"])[keep]
    ids = table["impression_id"].filter(pa.array(keep))
    # an engagement cannot be known before it happens
    return _known(ids, at_us, np.maximum(known_us, at_us), value[keep])


def _labels_in_row(
    spec: LineSpec, label: LabelInRow, shown: pa.Table, counts: SourceCounts
) -> pa.Table:
    """The engagements that stand in the impressions' own rows, dated when they became known."""
    value = columns.read_labels(shown, f"{_LABEL}.value", label.value)
    keep = ~np.isnan(value)
    counts.unlabelled = int((~keep).sum())
    known_us, given = _label_times(spec, label, shown)
    counts.label_time_missing = int((keep & ~given).sum())
    keep &= given
    if spec.label.outcome == "implicit" or label.positives_only:
        counts.silent = int((keep & (value == 0)).sum())
        keep &= value != 0
    at_us = columns.ints(shown["at_us"])
    counts.early_labels = int((keep & (known_us < at_us)).sum())
    known_us = np.maximum(known_us, at_us)[keep]
    ids = shown["impression_id"].filter(pa.array(keep))
    return _known(ids, known_us, known_us, value[keep])


def _label_times(
    spec: LineSpec, label: LabelInRow, shown: pa.Table
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    at_us = columns.ints(shown["at_us"])
    if label.known_at is not None:
        known_us, given = columns.read_times(shown, "known", spec.timezone)
        if not given.any():
            columns.expect_times(shown, "known", given, f"{_LABEL}.known_at", label.known_at)
        return known_us, given
    if label.delay is not None:
        drawn = draw_delays(shown["impression_id"].combine_chunks(), label.delay)
        return at_us + drawn, np.ones(len(at_us), dtype=np.bool_)
    delay_s = shown["delay_s"].to_numpy().astype(np.float64)
    given = np.abs(delay_s) < 1e10  # 300 years; false for NaN
    return at_us + np.rint(np.where(given, delay_s, 0.0) * 1e6).astype(np.int64), given


@dataclass(frozen=True)
class _Malformed:
    rows: int
    shown: list[str]


def _with_times(
    table: pa.Table, times: dict[str, TimeSpec], where: str, timezone: str
) -> tuple[pa.Table, _Malformed]:
    """Add `<prefix>_us` for each time; leave out, count and show rows without an id or a time."""
    good = ~columns.bools(pc.is_null(table["impression_id"]))
    rows = columns.ints(table["__row"])
    shown = [f"row {row}: {where} has no id" for row in rows[~good][:_SHOWN]]
    for prefix, time in times.items():
        at_us, given = columns.read_times(table, prefix, timezone)
        table = table.append_column(f"{prefix}_us", pa.array(at_us))
        field = "time" if prefix == "at" else "known_at"
        if not given.all() and (prefix == "at" or time != times["at"]):
            shown += columns.expect_times(table, prefix, given, f"{where}.{field}", time)
        good &= given
    return table.filter(pa.array(good)), _Malformed(int((~good).sum()), shown[:_SHOWN])


def _known(
    ids: pa.ChunkedArray,
    at_us: NDArray[np.int64],
    known_us: NDArray[np.int64],
    value: NDArray[np.float64],
) -> pa.Table:
    return pa.table(
        {
            "impression_id": ids,
            "at_us": at_us,
            "known_us": known_us,
            "value": value.astype(np.int64),
        }
    )


def _merge(spec: LineSpec, shown: pa.Table, known: pa.Table) -> pa.Table:
    zeros = pa.array(np.zeros(shown.num_rows, dtype=np.int64))
    shown = shown.append_column("value", zeros).append_column("known_us", shown["at_us"])
    merged = pa.concat_tables(
        [_events(spec, shown, IMPRESSION), _events(spec, known, spec.label.engagement)]
    )
    arrival_us = columns.ints(merged["arrival_at"])
    # stable, and impressions stand first: they precede an engagement of the same time
    return merged.take(pa.array(np.argsort(arrival_us, kind="stable"))).combine_chunks()


def _events(spec: LineSpec, table: pa.Table, event: str) -> pa.Table:
    rows = table.num_rows
    given: dict[str, Any] = {
        "event": pa.repeat(event, rows),
        "impression_id": table["impression_id"],
        "event_at": table["at_us"].cast(TIME),
        "arrival_at": table["known_us"].cast(TIME),
        "value": table["value"],
    }
    if event == IMPRESSION:
        given |= {name: table[name] for name in spec.columns}
    schema = event_schema(spec)
    filled = [given.get(item.name, pa.nulls(rows, item.type)) for item in schema]
    return pa.table(filled, schema=schema)
