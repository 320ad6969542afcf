"""A file log: immutable Arrow segments named by their offsets.

A record's offset is its position in the whole log. A segment appears by rename, so readers
need no lock and never see a torn one; a leftover `.tmp` of a killed writer is not a segment.
`join` keeps the number of segments small (see `segments`).
"""

from __future__ import annotations

import fcntl
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import pyarrow as pa

from headrace.atomic import sync_folder, write_arrow
from headrace.errors import EnvironmentFault, InputError, IntegrityError
from headrace.log.segments import EMPTY, Segment, announce, covered, due, list_segments

PIECE_ROWS: Final = 2048
"""Segments of so many records, at the mean, are joined piece by piece: to put them together first
is one more copy of everything, two fifths of a join's CPU. Readers meet pieces in any case.
"""


class FileLog:
    """One partition of records of one schema, on a local folder.

    With `writer=True` the folder's lock is held until `close` (or the process ends); a
    second writer gets `EnvironmentFault`. Of one writer, one thread appends and one joins, the same
    or another; its reads may overlap with both.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, writer: bool = False) -> None:
        self._folder = folder
        self._schema = schema
        self._lock: IO[str] | None = None
        self._listing = EMPTY
        self._changing = threading.Lock()
        self._settled = 0
        if writer:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(folder)
            for torn in folder.glob("*.tmp"):
                torn.unlink()
            self._listing = list_segments(folder)
            left = covered(folder, self._listing)
            if left:
                self._remove(left, self._listing.segments[-1])

    @property
    def head(self) -> int:
        """The offset that the next record will get."""
        segments = self._current()
        return segments[-1].stop if segments else 0

    @property
    def segments(self) -> int:
        """How many files hold the records."""
        return len(self._current())

    def append(self, table: pa.Table) -> int:
        """Make all rows durable at once; return the first one's offset.

        Raises `InputError` when the schema differs or a required column holds a null.
        """
        self._require_writer()
        check_records(str(self._folder), self._schema, table)
        first = self.head
        if table.num_rows == 0:
            return first
        segment = Segment.of(self._folder, first, table.num_rows)
        self._write(segment, table)
        with self._changing:
            self._listing.segments.append(segment)
        return first

    def join(self) -> int:
        """Join small segments where enough have gathered, those that came first before others.

        Readers go on undisturbed; a kill at any moment leaves all records. One call copies at
        most about `JOINED_ROWS` records. Returns the number of segments that were replaced.
        """
        self._require_writer()
        segments = list(self._listing.segments)
        while self._settled < len(segments):
            stop = self._settled + 1
            count = due(segments[:stop])  # as after the append of the last of them
            if count:
                self._become_one(segments[stop - count : stop])
                self._settled = stop - count
                return count
            self._settled = stop
        return 0

    def read(self, start: int, stop: int) -> pa.Table:
        """Records `[start, stop)`, cut at the head. Raises `IntegrityError` for a torn segment."""
        while True:
            segments = self._current()
            try:
                return self._read(segments, start, stop)
            except FileNotFoundError as problem:  # joined since it was listed; where to?
                if self._lock is None:
                    self._listing = EMPTY
                elif segments is self._listing.segments:
                    raise IntegrityError(
                        f"{self._folder}: a segment was removed under its writer ({problem}); "
                        "stop it and restore the segment"
                    ) from problem

    def last(self) -> pa.Table | None:
        """The newest record as a table of one row, or None for an empty log."""
        head = self.head
        return self.read(head - 1, head) if head else None

    @staticmethod
    def lag() -> int:
        """How many messages elsewhere are not in these files: none, the files are the log."""
        return 0

    def close(self) -> None:
        """Give the writer's lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self, segments: Sequence[Segment], start: int, stop: int) -> pa.Table:
        parts = []
        for place in range(bisect_right(segments, start, key=lambda s: s.stop), len(segments)):
            first, end, _ = segments[place]
            if first >= stop:
                break
            rows = segments[place].load(self._schema)
            parts.append(rows.slice(max(start - first, 0), min(stop, end) - max(start, first)))
        return pa.concat_tables(parts) if parts else self._schema.empty_table()

    def _become_one(self, small: Sequence[Segment]) -> None:
        joined = Segment.of(self._folder, small[0].first, small[-1].stop - small[0].first)
        self._write_together(small, joined)
        with self._changing:
            before = [part for part in self._listing.segments if part.stop <= joined.first]
            behind = [part for part in self._listing.segments if part.first >= joined.stop]
            self._listing = self._listing._replace(segments=[*before, joined, *behind])
        self._remove([part.path for part in small], joined)

    def _write_together(self, small: Sequence[Segment], joined: Segment) -> None:
        """Write one segment of what some hold, and let their files go.

        Whoever lets the last map of a removed file go, frees its blocks on the disk: at the end of
        a function that would be a thread which holds the interpreter meanwhile, 1 ms a file.
        """
        pieces = [part.load(self._schema) for part in small]
        large = joined.rows >= PIECE_ROWS * len(pieces)
        self._write(joined, pa.concat_tables(pieces), in_pieces=large)

    def _current(self) -> list[Segment]:
        if self._lock is None:  # the writer knows its own appends and joins
            self._listing = list_segments(self._folder, self._listing)
        return self._listing.segments

    def _require_writer(self) -> None:
        if self._lock is None:
            raise EnvironmentFault(f"{self._folder}: opened for reading; open it with writer=True")

    def _write(self, segment: Segment, table: pa.Table, *, in_pieces: bool = False) -> None:
        torn = segment.path.with_suffix(".tmp")
        try:
            rows = pa.Table.from_arrays(table.columns, schema=self._schema)
            write_arrow(torn, rows, in_pieces=in_pieces)
            torn.rename(segment.path)
            sync_folder(self._folder)
        except BaseException:
            torn.unlink(missing_ok=True)  # on a full disk its space is wanted
            segment.path.unlink(missing_ok=True)  # its offsets are free for the next append
            raise

    def _remove(self, paths: Sequence[Path], joined: Segment) -> None:
        """Remove segments that a durable one covers; readers are told before."""
        announce(self._folder, joined)
        for path in paths:
            path.unlink(missing_ok=True)


def take_lock(folder: Path) -> IO[str]:
    """The lock of a folder that one process writes, held until the file is closed.

    Raises `EnvironmentFault` where another process holds it.
    """
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise EnvironmentFault(
            f"{folder}: another process already writes this log; stop it first (headrace down)"
        ) from None
    return file


def check_records(log: str, schema: pa.Schema, table: pa.Table) -> None:
    """Raise `InputError` unless the records fit the log's schema."""
    if not table.schema.equals(schema):
        wrong = set(table.schema).symmetric_difference(schema) or "order of columns"
        raise InputError(f"{log}: records do not fit the log's schema: {wrong}")
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise InputError(f"{log}: column {field.name!r} holds a null; it is required")
