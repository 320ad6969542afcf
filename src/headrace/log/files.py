"""A file log: immutable Arrow segments named by their offsets.

A record's offset is its position in the whole log. A segment appears by rename, so readers
need no lock and never see a torn one; a leftover `.tmp` of a killed writer is not a segment.
"""

from __future__ import annotations

import fcntl
import os
import re
from bisect import bisect_right
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from headrace.atomic import sync_folder
from headrace.errors import EnvironmentFault, InputError, IntegrityError

_SEGMENT = re.compile(r"^(\d{20})-(\d{10})\.arrow$")


class Segment(NamedTuple):
    """Offsets `[first, stop)` and the file that holds them."""

    first: int
    stop: int
    path: Path


class FileLog:
    """One partition of records of one schema, on a local folder.

    With `writer=True` the folder's lock is held until `close` (or the process ends); a
    second writer gets `EnvironmentFault`. Appends of one writer must not overlap in time.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, writer: bool = False) -> None:
        self._folder = folder
        self._schema = schema
        self._lock: IO[str] | None = None
        self._segments: list[Segment] = []
        if writer:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(folder)
            for torn in folder.glob("*.tmp"):
                torn.unlink()
            self._segments = _extend(folder, [])

    @property
    def head(self) -> int:
        """The offset that the next record will get."""
        segments = self._current()
        return segments[-1].stop if segments else 0

    def append(self, table: pa.Table) -> int:
        """Make all rows durable at once; return the first one's offset.

        Raises `InputError` when the schema differs or a required column holds a null.
        """
        if self._lock is None:
            raise EnvironmentFault(f"{self._folder}: opened for reading; open it with writer=True")
        _check(self._folder, self._schema, table)
        first = self.head
        if table.num_rows == 0:
            return first
        path = self._folder / f"{first:020d}-{table.num_rows:010d}.arrow"
        torn = path.with_suffix(".tmp")
        try:
            with torn.open("wb") as file:
                with pa.ipc.new_file(file, self._schema) as writer:
                    writer.write_table(table.combine_chunks())
                file.flush()
                os.fsync(file.fileno())
            torn.rename(path)
        except BaseException:
            torn.unlink(missing_ok=True)  # on a full disk its space is wanted
            raise
        sync_folder(self._folder)
        self._segments.append(Segment(first, first + table.num_rows, path))
        return first

    def read(self, start: int, stop: int) -> pa.Table:
        """Records `[start, stop)`, cut at the head. Raises `IntegrityError` for a torn segment."""
        segments = self._current()
        parts = []
        for place in range(bisect_right(segments, start, key=lambda s: s.stop), len(segments)):
            first, end, _ = segments[place]
            if first >= stop:
                break
            rows = _load(segments[place], self._schema)
            parts.append(rows.slice(max(start - first, 0), min(stop, end) - max(start, first)))
        return pa.concat_tables(parts) if parts else self._schema.empty_table()

    def last(self) -> pa.Table | None:
        """The newest segment's records, or None for an empty log."""
        segments = self._current()
        return _load(segments[-1], self._schema) if segments else None

    def close(self) -> None:
        """Give the writer's lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _current(self) -> list[Segment]:
        if self._lock is None:  # the writer knows its own appends
            self._segments = _extend(self._folder, self._segments)
        return self._segments


def _take_lock(folder: Path) -> IO[str]:
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise EnvironmentFault(
            f"{folder}: another process already writes this log; stop it first (headrace down)"
        ) from None
    return file


def _extend(folder: Path, known: list[Segment]) -> list[Segment]:
    """The known segments and those that came since; only new names are parsed."""
    newest = known[-1].path.name if known else ""
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
    fresh = sorted(name for name in names if name > newest and _SEGMENT.match(name))
    segments = list(known)
    stop = known[-1].stop if known else 0
    for name in fresh:
        first = int(name[:20])
        if first != stop:
            raise IntegrityError(
                f"{folder / name}: starts at offset {first}, but the segment before ends "
                f"at {stop}; restore the missing segment"
            )
        stop = first + int(name[21:31])
        segments.append(Segment(first, stop, folder / name))
    return segments


def _load(segment: Segment, schema: pa.Schema) -> pa.Table:
    try:
        with pa.memory_map(str(segment.path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as problem:
        raise IntegrityError(f"{segment.path}: not readable ({problem}); restore it") from problem
    if table.num_rows != segment.stop - segment.first:
        raise IntegrityError(
            f"{segment.path}: holds {table.num_rows} records, its name says "
            f"{segment.stop - segment.first}; restore it"
        )
    if not table.schema.equals(schema):
        raise IntegrityError(
            f"{segment.path}: was written with other columns than the line declares now; "
            "use a new home (HEADRACE_HOME) or a new line name"
        )
    return table


def _check(folder: Path, schema: pa.Schema, table: pa.Table) -> None:
    if not table.schema.equals(schema):
        wrong = set(table.schema).symmetric_difference(schema) or "order of columns"
        raise InputError(f"{folder}: records do not fit the log's schema: {wrong}")
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise InputError(f"{folder}: column {field.name!r} holds a null; it is required")
