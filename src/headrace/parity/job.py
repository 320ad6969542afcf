"""The parity job: served rows, batch by batch, and where they start."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.events import of_defaults, served_schema
from headrace.log.files import FileLog
from headrace.parity.causes import Ints
from headrace.parity.compare import Batch, Source
from headrace.parity.report import ParityReport
from headrace.settings import Settings

BOOTSTRAP: Final = "bootstrap"
BATCH_ROWS: Final = 100_000
SHOWN: Final = 20


def check(
    settings: Settings,
    spec: LineSpec,
    served: pa.Table | None = None,
    *,
    from_offset: int = 0,
    history: Source = "feast",
    shown: int | None = SHOWN,
) -> ParityReport:
    """Recompute served rows: those given (`served_schema`), or the served log's from an offset on.

    Each value is compared at the moment of the row that the server read, `<view>__at`, with the
    kernel over the event log and with `history`: Feast's point-in-time join, or the ticks' parts
    themselves. Rows of version `bootstrap` were never served and are left out, and so are those of
    defaults, which are counted. At most `shown`
    mismatches are told in detail (None: all).

    Memory: `BATCH_ROWS` served rows, the events of the windows that they ask for, and what
    history holds for their keys. Cost follows the rows and that stretch of the log, not its length.
    """
    report = ParityReport(history)
    for rows, offsets in _batches(settings, spec, served, from_offset):
        read = ~of_defaults(rows)
        report = replace(report, defaults=report.defaults + int((~read).sum()))
        if read.any():
            own = None if offsets is None else offsets[read]
            kept = rows.filter(pa.array(read)).combine_chunks()
            found = Batch(settings, spec, kept, own, history=history).compared()
            report = report.plus(found.report(history, shown), shown)
    return report


def offset_of(settings: Settings, spec: LineSpec, since_us: int) -> int:
    """Offset of the first row that the server answered at or after that moment (int64 us)."""
    log = _served_log(settings, spec)

    def answered_us(offset: int) -> int:
        row = log.read(offset, offset + 1)
        return int(row["served_at"].cast(pa.int64())[0].as_py())

    return bisect_left(range(log.head), since_us, key=answered_us)


def offset_of_last(settings: Settings, spec: LineSpec, rows: int) -> int:
    """Offset from which the served log holds so many rows (0 where it holds fewer)."""
    return max(_served_log(settings, spec).head - rows, 0)


def _served_log(settings: Settings, spec: LineSpec) -> FileLog:
    return FileLog(settings.line_home(spec.line) / "log" / "served", served_schema(spec))


def _batches(
    settings: Settings, spec: LineSpec, served: pa.Table | None, from_offset: int
) -> Iterator[tuple[pa.Table, Ints | None]]:
    log = _served_log(settings, spec)
    size = log.head if served is None else served.num_rows
    for start in range(from_offset, size, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, size)
        rows = log.read(start, stop) if served is None else served.slice(start, stop - start)
        live = np.asarray(pc.not_equal(rows["version"], BOOTSTRAP).to_numpy(), dtype=np.bool_)
        if live.any():
            offsets = start + np.flatnonzero(live) if served is None else None
            yield rows.filter(pa.array(live)).combine_chunks(), offsets
