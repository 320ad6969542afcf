"""The steps of a backfill over an interval, on any share of the log that holds its keys whole.

In this process a share is everything; on Spark it is one partition. Resolving asks for all events
of an impression, a view for all rows of its keys, a part for all answers of its offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.atomic import write_parquet
from headrace.backfill.features import event_columns, features
from headrace.declaration import LineSpec
from headrace.events import IMPRESSION, TIME, event_schema, served_schema
from headrace.labels.state import LabelState
from headrace.log.files import FileLog
from headrace.windows import key_hashes

STRIDE: Final = 2**18  # offsets that are read at once, and that a part covers


@dataclass(frozen=True)
class Job:
    """What is asked: impressions with a stamp in `[from_us, to_us)`, of log offsets below `stop`.

    It travels to Spark's workers; `log` and `out` are folders that all of them see.
    """

    spec: LineSpec
    log: Path
    out: Path
    from_us: int
    to_us: int
    stop: int

    @property
    def since_us(self) -> int:
        """Events known before this moment are in no window that is asked."""
        longest = max((feature.window for feature in self.spec.windows), default=0)
        return self.from_us - LabelState(self.spec).horizon_us - longest

    @property
    def strides(self) -> Iterator[tuple[int, int]]:
        """Offset intervals that cover the log up to `stop`."""
        return ((at, min(at + STRIDE, self.stop)) for at in range(0, self.stop, STRIDE))


def read(job: Job, start: int, stop: int) -> pa.Table:
    """Events `[start, stop)` of the log, with their `offset`."""
    events = FileLog(job.log, event_schema(job.spec)).read(start, stop)
    return events.append_column("offset", pa.array(np.arange(start, start + events.num_rows)))


def log_schema(spec: LineSpec) -> pa.Schema:
    """What `read` gives."""
    return event_schema(spec).append(pa.field("offset", pa.int64()))


class Resolver:
    """Events in the order of the log become what windows count and what is asked of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._labels = LabelState(job.spec)
        self._no_vectors = served_schema(job.spec).empty_table()

    def rows(self, events: pa.Table) -> pa.Table:
        """Resolved rows (`row_schema`); an impression of the interval has a `request_at`.

        A question is put at the impression's own time or, where its clock was ahead, at its
        arrival: what had not arrived when the request was made is not seen.
        """
        job = self._job
        resolved = self._labels.resolve(events)
        if events.num_rows:  # what can no longer be joined is forgotten
            self._labels.emit(self._no_vectors, int(_us(events, "arrival_at")[-1]))
        known = _us(resolved, "knowledge_at")
        resolved = resolved.filter(pa.array(known >= job.since_us))
        known = known[known >= job.since_us]
        shown = (resolved["event"].to_numpy() == IMPRESSION) & (known < job.to_us)
        places = np.where(shown, np.searchsorted(_us(events, "offset"), _us(resolved, "offset")), 0)
        own = events.take(pa.array(places))
        moment = np.minimum(_us(own, "event_at"), _us(own, "arrival_at"))
        asked = pa.array(moment, mask=~shown | (known < job.from_us))
        identity = pc.if_else(pa.array(shown), own["impression_id"], None)
        return resolved.append_column("request_at", asked).append_column("impression_id", identity)


def row_schema(spec: LineSpec) -> pa.Schema:
    """What `Resolver.rows` gives."""
    resolved = LabelState(spec).resolve(log_schema(spec).empty_table()).schema
    return pa.schema([*resolved, ("request_at", pa.int64()), ("impression_id", pa.string())])


def spread(job: Job, rows: pa.Table) -> pa.Table:
    """Resolved rows once for each view that reads them, with the `_key` that brings them together.

    `_asked` says which of them are questions. Questions without a key go anywhere.
    """
    parts = [_spread_view(job.spec, number, rows) for number in range(len(job.spec.views))]
    return pa.concat_tables([spread_schema(job.spec).empty_table(), *parts])


def spread_schema(spec: LineSpec) -> pa.Schema:
    """What `spread` gives."""
    added = [("_view", pa.int64()), ("_key", pa.int64()), ("_asked", pa.bool_())]
    return pa.schema([*row_schema(spec), *added])


def answer(job: Job, rows: pa.Table) -> pa.Table:
    """Window features of the questions among `rows`, all rows of some keys (`answer_schema`)."""
    numbers = _us(rows, "_view")
    parts = []
    for number, view in enumerate(job.spec.views):
        mine = rows.filter(pa.array(numbers == number))
        events = in_order(mine.filter(pc.invert(mine["_asked"])))
        asked = mine.filter(mine["_asked"])
        found = features(job.spec, events, asked, views=[view])
        for name in found.column_names:
            asked = asked.append_column(name, found[name])
        parts.append(_fill(asked, answer_schema(job.spec)))
    return pa.concat_tables(parts)


def answer_schema(spec: LineSpec) -> pa.Schema:
    """What `answer` gives: a view's own features, and of the first view who was asked."""
    windows = [(feature.name, pa.int64()) for feature in spec.windows]
    part = [("_view", pa.int64()), ("_part", pa.int64())]
    asked = [field for field in part_schema(spec) if field.name not in dict(windows)]
    return pa.schema([*part, *asked, *windows])


def write(job: Job, answers: pa.Table) -> int:
    """Write the parts of which these are all answers, each whole; return the number of rows."""
    of_part = _us(answers, "_part")
    rows = 0
    for part in np.unique(of_part):
        rows += write_part(job, int(part), _joined(job.spec, answers.filter(of_part == part)))
    return rows


def write_part(job: Job, part: int, rows: pa.Table) -> int:
    """Write one part, its rows in the order of the log, whatever engine made them."""
    rows = rows.take(np.argsort(_us(rows, "offset"))).select(part_schema(job.spec).names)
    write_parquet(job.out / f"part-{part:06d}.parquet", rows.cast(part_schema(job.spec)))
    return len(rows)


def part_schema(spec: LineSpec) -> pa.Schema:
    """Columns of a part: who was asked and when, the declared columns, the window features."""
    declared = [event_schema(spec).field(name) for name in spec.columns]
    windows = [pa.field(f.name, pa.int64(), nullable=False) for f in spec.windows]
    own = [("offset", pa.int64()), ("impression_id", pa.string()), ("request_at", TIME)]
    return pa.schema([*own, *declared, *windows])


def in_order(rows: pa.Table) -> pa.Table:
    """Rows by the time they were known, ties as in the log."""
    return rows.take(np.lexsort((_us(rows, "offset"), _us(rows, "knowledge_at"))))


def _spread_view(spec: LineSpec, number: int, rows: pa.Table) -> pa.Table:
    declared = list(spec.views.values())[number]
    hashes = key_hashes(rows, declared[0].key)
    counted = np.isin(rows["event"].to_numpy(), [feature.event for feature in declared])
    events = np.flatnonzero(counted & (hashes >= 0))
    asked = np.flatnonzero(rows["request_at"].is_valid().to_numpy())
    schema = spread_schema(spec)
    kept = rows.take(events).select(["offset", *event_columns(declared)])
    whole = ["offset", "request_at", "impression_id", *spec.columns]
    put = rows.take(asked).select(
        whole if number == 0 else ["offset", "request_at", *declared[0].key]
    )
    keys = np.where(hashes < 0, -1 - _us(rows, "offset"), hashes)
    tables = []
    for table, places, is_asked in ((kept, events, False), (put, asked, True)):
        marks = {
            "_view": pa.array(np.full(places.size, number)),
            "_key": pa.array(keys[places]),
            "_asked": pa.array(np.full(places.size, is_asked)),
        }
        tables.append(_fill(pa.table({**_columns(table), **marks}), schema))
    return pa.concat_tables(tables)


def _joined(spec: LineSpec, answers: pa.Table) -> pa.Table:
    """The answers of all views side by side."""
    numbers = _us(answers, "_view")
    joined: pa.Table | None = None
    for number, declared in enumerate(spec.views.values()):
        mine = answers.filter(pa.array(numbers == number))
        mine = mine.take(np.argsort(_us(mine, "offset")))
        if joined is None:
            joined = mine
        for feature in declared:
            place = joined.schema.get_field_index(feature.name)
            joined = joined.set_column(place, feature.name, mine[feature.name])
    return joined


def _fill(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns of `schema`, null where the table has none; a part number from the offset."""
    if "_part" in schema.names:
        part = pa.array(_us(table, "offset") // STRIDE)
        table = table.append_column("_part", part)
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    nullable = [pa.field(field.name, field.type) for field in schema]
    return pa.table(columns, schema=pa.schema(nullable))


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _us(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name].cast(pa.int64()).to_numpy(), dtype=np.int64)
