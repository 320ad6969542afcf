"""The rows of a tick's part, wherever they lie: in a file of their own, or packed with others.

A tick writes `<folder>/b=<tick>.parquet` and names it in its manifest. Old parts are packed
(`headrace.packing`): `<folder>/b=<first>-<last>.parquet` holds the rows of the parts from tick
`first` to `last`, in their order, and in its metadata how many rows are whose. The manifest goes on
naming the part; whoever reads it does so here. A part and its pack may both be there.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

TICKS: Final = b"headrace_ticks"
"""In a pack's metadata: a JSON list of [tick, rows], in the order of the rows."""
PACK_ROWS: Final = 1 << 16
"""Rows of a pack at most, so that one that is held in memory is small."""
_OWN: Final = re.compile(r"^b=(\d{8})\.parquet$")
_PACK: Final = re.compile(r"^b=(\d{8})-(\d{8})\.parquet$")


@dataclass(frozen=True, order=True)
class Pack:
    """Ticks `first` to `last` (inclusive) of a folder in one file."""

    first: int
    last: int
    path: Path

    @classmethod
    def of(cls, folder: Path, first: int, last: int) -> Pack:
        """The pack under its name."""
        return cls(first, last, folder / f"b={first:08d}-{last:08d}.parquet")


def listed(folder: Path) -> tuple[list[int], list[Pack]]:
    """Ticks that have a file of their own, and the packs, both in order."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return [], []
    own = [int(match[1]) for name in names if (match := _OWN.match(name))]
    found = [match for name in names if (match := _PACK.match(name))]
    return own, [Pack(int(match[1]), int(match[2]), folder / match[0]) for match in found]


def between(folder: Path, start: int, stop: int) -> list[int]:
    """Ticks of `[start, stop)` that have a part in a folder, packed or not, in order."""
    own, packs = listed(folder)
    there = {tick for tick in own if start <= tick < stop}
    for pack in packs:
        if pack.first < stop and start <= pack.last:
            there.update(tick for tick in _places(pack.path) if start <= tick < stop)
    return sorted(there)


def own_path(folder: Path, tick: int) -> Path:
    """Where a tick writes its part."""
    return folder / f"b={tick:08d}.parquet"


def exists(path: Path) -> bool:
    """Whether the part is there, packed or not. path: as the manifest names it."""
    return path.is_file() or _packed(path) is not None


def count(path: Path) -> int:
    """Rows of a part. Raises `FileNotFoundError` when it is nowhere."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except FileNotFoundError:
        return _place(path)[2]


def read(
    path: Path, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """Rows of a part. Raises `FileNotFoundError` when it is nowhere, `pa.ArrowInvalid` torn."""
    wanted = None if columns is None else list(columns)
    try:
        return pq.read_table(path, columns=wanted, schema=schema, partitioning=None)
    except FileNotFoundError:
        pack, start, rows = _place(path)
        names = None if columns is None else tuple(columns)
        return _table(pack.path, names, schema).slice(start, rows)


def read_all(
    paths: Sequence[Path], schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of many parts, in their order. A pack is read in place of the files that it holds, and
    files that no pack holds are read together.
    """
    packs = {folder: listed(folder)[1] for folder in {path.parent for path in paths}}
    tables = []
    for held_by, run in groupby(paths, key=lambda path: _holding_part(packs[path.parent], path)):
        some = list(run)
        if held_by is not None:
            names = None if columns is None else tuple(columns)
            whole, places = _table(held_by.path, names, schema), _places(held_by.path)
            spans = _joined(places[int(path.name[2:10])] for path in some)
            tables += [whole.slice(start, rows) for start, rows in spans]
            continue
        if len(some) > 1:
            try:
                tables += _together(some, schema, columns)
                continue
            except FileNotFoundError:  # packed and removed a moment ago
                pass
        tables += [read(path, columns, schema) for path in some]
    return pa.concat_tables([_wanted(schema, columns).empty_table(), *tables])


def batches(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None, rows: int
) -> Iterator[pa.Table]:
    """A part in tables of at most `rows` rows, a large one read piece by piece."""
    if not path.is_file():
        yield read(path, columns, schema)
        return
    small = pq.read_metadata(path).num_rows <= rows
    if small and (whole := _as_stored(path, schema, columns)) is not None:
        yield whole
        return
    wanted = None if columns is None else list(columns)
    stored = ds.dataset(path, schema, "parquet")
    for batch in stored.to_batches(wanted, batch_size=rows, batch_readahead=1):
        yield pa.Table.from_batches([batch])


def _together(
    paths: Sequence[Path], schema: pa.Schema, columns: Sequence[str] | None
) -> list[pa.Table]:
    """Rows of some files: by a dataset of them all where one has other columns than the schema."""
    tables = [_as_stored(path, schema, columns) for path in paths]
    found = [table for table in tables if table is not None]
    if len(found) == len(tables):
        return found
    stored = ds.dataset([str(path) for path in paths], schema, "parquet")
    return [stored.to_table(None if columns is None else list(columns))]


def _as_stored(path: Path, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table | None:
    """Rows of a file whose columns are as the schema has them, None of another one.

    A dataset adapts columns; for one file as small as a tick's it takes twice the time, for many at
    once an eighth more.
    """
    wanted = _wanted(schema, columns)
    with pq.ParquetFile(path) as file:
        stored = {field.name: field for field in file.schema_arrow}
        if any(field.name not in stored or field != stored[field.name] for field in wanted):
            return None
        rows = file.read(wanted.names, use_threads=False).select(wanted.names)
    return rows.replace_schema_metadata(wanted.metadata)


def _wanted(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def contents(pack: Path) -> list[tuple[int, int]]:
    """Each tick of a pack and its rows, in order."""
    told = json.loads(pq.read_metadata(pack).metadata[TICKS])
    return [(int(tick), int(rows)) for tick, rows in told]


def _packed(path: Path) -> Pack | None:
    match = _OWN.match(path.name)
    if match is None:
        return None
    tick, folder = int(match[1]), path.parent
    changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
    # clocks of file systems are coarse: what an old listing lacks may have come since
    return _holding(_packs(folder, changed), tick) or _holding(listed(folder)[1], tick)


def _holding_part(packs: Sequence[Pack], path: Path) -> Pack | None:
    match = _OWN.match(path.name)
    return None if match is None else _holding(packs, int(match[1]))


def _joined(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places (first row, rows) in a pack, those that follow each other as one."""
    spans: list[tuple[int, int]] = []
    for start, rows in places:
        if spans and sum(spans[-1]) == start:
            spans[-1] = (spans[-1][0], spans[-1][1] + rows)
        else:
            spans.append((start, rows))
    return spans


def _holding(packs: Sequence[Pack], tick: int) -> Pack | None:
    before = bisect_right(packs, tick, key=lambda pack: pack.first)
    found = packs[before - 1] if before else None
    return found if found is not None and tick in _places(found.path) else None


def _place(path: Path) -> tuple[Pack, int, int]:
    pack = _packed(path)
    if pack is None:
        raise FileNotFoundError(f"{path}: no such part, nor a pack that holds it; restore it")
    start, rows = _places(pack.path)[int(path.name[2:10])]
    return pack, start, rows


@lru_cache(maxsize=64)
def _packs(folder: Path, _changed_ns: int) -> list[Pack]:
    """The packs of a folder, asked again once something in it was made or removed."""
    return listed(folder)[1]


@lru_cache(maxsize=1024)
def _places(pack: Path) -> dict[int, tuple[int, int]]:
    places, start = {}, 0
    for tick, rows in contents(pack):
        places[tick] = (start, rows)
        start += rows
    return places


@lru_cache(maxsize=4)
def _table(pack: Path, columns: tuple[str, ...] | None, schema: pa.Schema | None) -> pa.Table:
    """A pack is never changed under its name, and its parts are asked for one after the other."""
    wanted = None if columns is None else list(columns)
    return pq.read_table(pack, columns=wanted, schema=schema, partitioning=None)
