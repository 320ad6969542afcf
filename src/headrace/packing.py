"""Old parts of ticks become packs, so that a line that lives long does not drown in small files.

A tick each second writes half a million files a day. Behind the newest ticks, runs of parts are
joined into packs of up to `PACK_TICKS` parts or `parts.PACK_ROWS` rows (docs/adr/0053). A pack is
read back and compared before it counts, and what it holds is removed `GRACE` later, so that whoever
listed the folder before can still read what was listed. Safe to kill, to repeat, beside readers
and ticks, and twice at once: the same parts give the same bytes.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.atomic import disk_faults, write_parquet
from headrace.errors import IntegrityError
from headrace.parts import PACK_ROWS, TICKS, Pack, contents, listed, own_path

KEEP_TICKS: Final = 128
"""The newest ticks, whose parts stay as they are: they are read one at a time."""
PACK_TICKS: Final = 256
GRACE: Final = timedelta(hours=1)
"""Longer than any read of history takes."""


@dataclass(frozen=True)
class Packed:
    """What a pass did: packs written, and parts removed because a pack holds them."""

    packs: int = 0
    removed: int = 0


@dataclass
class Run:
    """The parts of a folder that the next pack will hold: (tick, rows), which have one schema.

    `seen`: ticks up to this one need not be looked at again.
    """

    parts: list[tuple[int, int]] = field(default_factory=list)
    schema: pa.Schema | None = None
    seen: int = -1


Known = dict[Path, Run]
"""The runs that earlier passes of a process left unfinished, by folder."""


def pack(
    home: Path, head: int, known: Known | None = None, *, keep: int = KEEP_TICKS,
    most: int = PACK_TICKS, now_s: float | None = None,
) -> Packed:  # fmt: skip
    """One pass over the samples, fates and features of a line's home; `head`: its ticks.

    With what is `known` its cost follows the ticks that are new. `now_s`: the time, for what is
    removed. Raises `IntegrityError` for a part that is torn or a pack that does not read back as
    its parts; they stay in use.
    """
    known = {} if known is None else known
    packs = removed = 0
    with disk_faults(home):
        for folder in _folders(home):
            own, there = listed(folder)
            removed += _remove(there, own, time.time() if now_s is None else now_s)
            run = known.setdefault(folder, Run())
            run.seen = max(run.seen, there[-1].last if there else -1)
            for tick in own[bisect_right(own, run.seen) : bisect_left(own, head - keep)]:
                packs += _add(folder, run, tick, most)
    return Packed(packs, removed)


def _folders(home: Path) -> list[Path]:
    found = [home / "samples", home / "fates", *sorted((home / "features").glob("*"))]
    return [folder for folder in found if folder.is_dir()]


def _remove(packs: list[Pack], own: list[int], now_s: float) -> int:
    gone = 0
    for each in packs:
        inside = own[bisect_left(own, each.first) : bisect_right(own, each.last)]
        if not inside or now_s - each.path.stat().st_mtime < GRACE.total_seconds():
            continue
        held = {tick for tick, _ in contents(each.path)}
        for tick in held.intersection(inside):
            own_path(each.path.parent, tick).unlink(missing_ok=True)
            gone += 1
    return gone


def _add(folder: Path, run: Run, tick: int, most: int) -> int:
    """Take a part into the run; returns how many packs that filled.

    A run is full when there is no room for the next part, or that is of another schema. A part that
    fills half a pack alone stays a file of its own, and ends the run before it.
    """
    path = own_path(folder, tick)
    try:
        with pq.ParquetFile(path) as part:
            rows, schema = part.metadata.num_rows, part.schema_arrow
    except pa.ArrowInvalid as problem:
        raise IntegrityError(f"{path}: not readable ({problem}); restore it") from problem
    large = 2 * rows > PACK_ROWS
    full = len(run.parts) == most or sum(each for _, each in run.parts) + rows > PACK_ROWS
    written = 0
    if large or full or schema != run.schema:
        if len(run.parts) > 1:
            _write(folder, run.parts)
            written = 1
        run.parts = []
    if not large:
        run.parts.append((tick, rows))
    run.schema, run.seen = schema, tick
    return written


def _write(folder: Path, run: list[tuple[int, int]]) -> None:
    tables = [pq.read_table(own_path(folder, tick), partitioning=None) for tick, _ in run]
    rows = pa.concat_tables(tables).combine_chunks()
    new = Pack.of(folder, run[0][0], run[-1][0])
    # under a name that no reader of the folder takes for a part, until it is proven
    trial = folder / f".{new.path.stem}.trial"
    write_parquet(trial, rows.replace_schema_metadata({TICKS: json.dumps(run).encode()}))
    back = pq.read_table(trial, partitioning=None).combine_chunks()
    if not _patterns(back).equals(_patterns(rows)) or contents(trial) != run:
        trial.unlink()
        raise IntegrityError(
            f"{new.path}: the pack that was written differs from its parts, which stay in use; "
            "check the disk"
        )
    trial.replace(new.path)


def _patterns(rows: pa.Table) -> pa.Table:
    """The table with floats as their bits, since a NaN equals nothing."""
    ints = {pa.float32(): pa.int32(), pa.float64(): pa.int64()}
    columns = [
        pa.chunked_array([chunk.view(ints[column.type]) for chunk in column.chunks])
        if column.type in ints and column.num_chunks
        else column
        for column in rows.columns
    ]
    return pa.table(columns, names=rows.schema.names)
