"""Segments of a file log: their names, the race-free listing of them, and what to join.

A segment is named `<first offset>-<records>.arrow` and never changes. Small neighbours are
joined into one segment of the same records, in three steps whose order readers rely on:

1. the joined segment appears (rename);
2. the file `.joined` is replaced by one that names it;
3. the segments that it covers are removed.

A reader lists the folder between two looks at `.joined`. If both looks agree, whatever
vanished during the listing was covered by a segment that was there before it began, and a
listing returns every file that is there throughout: nothing is missed. Otherwise it lists again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from headrace.errors import IntegrityError
from headrace.events import LATER

_NAME: Final = re.compile(r"^(\d{20})-(\d{10})\.arrow$")
_JOINED: Final = ".joined"
_LATER: Final = {key.encode(): value.encode() for key, value in LATER.items()}

FAN_IN: Final = 32
JOINED_ROWS: Final = 2**17  # no more records than this are copied by one join
_GROWTH: Final = 4


class Segment(NamedTuple):
    """Offsets `[first, stop)` and the file that holds them."""

    first: int
    stop: int
    path: Path

    @classmethod
    def of(cls, folder: Path, first: int, rows: int) -> Segment:
        """The segment of these records, whether it is there or not."""
        return cls(first, first + rows, folder / f"{first:020d}-{rows:010d}.arrow")

    @property
    def rows(self) -> int:
        return self.stop - self.first

    def load(self, schema: pa.Schema) -> pa.Table:
        """All records, mapped from the file.

        Raises `FileNotFoundError` when it was joined meanwhile, `IntegrityError` when its bytes
        are not what its name and the schema say.
        """
        try:
            with pa.memory_map(str(self.path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except FileNotFoundError:
            raise
        except (pa.ArrowInvalid, OSError) as problem:
            raise IntegrityError(f"{self.path}: not readable ({problem}); restore it") from problem
        if table.num_rows != self.rows:
            raise IntegrityError(
                f"{self.path}: holds {table.num_rows} records, its name says {self.rows}; "
                "restore it"
            )
        if len(table.schema) < len(schema):
            table = _completed(table, schema)
        if not table.schema.equals(schema):
            raise IntegrityError(
                f"{self.path}: was written with other columns than the line declares now; "
                "use a new home (HEADRACE_HOME) or a new line name"
            )
        return table


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The records with the columns that Headrace logs since they were written, as nulls."""
    for place, field in enumerate(schema):
        if field.name not in table.schema.names and field.metadata == _LATER:
            table = table.add_column(place, field, pa.nulls(table.num_rows, field.type))
    return table


class Listing(NamedTuple):
    """Segments in order, without gap or overlap, and the newest join that they reflect."""

    joined: str
    segments: list[Segment]


EMPTY: Final = Listing("", [])


def list_segments(folder: Path, known: Listing = EMPTY) -> Listing:
    """What the folder holds now; `known` (an earlier answer) saves parsing its names again.

    Raises `IntegrityError` for a segment that is missing or overlaps another one.
    """
    gap: Segment | None = None
    while True:
        joined, names = _stable_names(folder)
        base = known.segments if joined == known.joined else []
        newest = base[-1].path.name if base else ""
        fresh = (_parsed(folder, name) for name in names if name > newest and _NAME.match(name))
        segments, beyond = _chained(base, fresh)
        if beyond is None:
            return Listing(joined, segments)
        # A listing may show an append made meanwhile and not the one before. What it shows has
        # been appended after all that it lacks, so the next listing has no gap there.
        if gap is not None and beyond.first <= gap.first:
            stop = segments[-1].stop if segments else 0
            raise IntegrityError(
                f"{beyond.path}: starts at offset {beyond.first}, but the segment before ends "
                f"at {stop}; restore the missing segment"
            )
        gap = beyond


def covered(folder: Path, listing: Listing) -> list[Path]:
    """Segments that a join made superfluous and a kill left behind."""
    wanted = {segment.path.name for segment in listing.segments}
    names = os.listdir(folder)  # noqa: PTH208
    return [folder / name for name in names if _NAME.match(name) and name not in wanted]


def announce(folder: Path, joined: Segment) -> None:
    """Tell readers that segments are about to vanish (step 2)."""
    partial = folder / f"{_JOINED}.tmp"
    partial.write_text(joined.path.name, encoding="ascii")
    partial.replace(folder / _JOINED)


def due(segments: Sequence[Segment]) -> int:
    """How many of the newest segments should become one now; 0 for none.

    Joined are `FAN_IN` segments, or as many as fit `JOINED_ROWS`, none of which holds a quarter
    of the whole: a record is copied about log4(JOINED_ROWS) times at most, and the number of
    small segments grows with the logarithm of the number of records.
    """
    total = largest = 0
    for count, segment in enumerate(reversed(segments), start=1):
        total += segment.rows
        largest = max(largest, segment.rows)
        if total > JOINED_ROWS:
            return 0
        before = segments[-count - 1].rows if count < len(segments) else 0
        enough = count >= FAN_IN or total + before > JOINED_ROWS
        if enough and count > 1 and total >= _GROWTH * largest:
            return count
    return 0


def _stable_names(folder: Path) -> tuple[str, list[str]]:
    while True:
        before = _newest_join(folder)
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            return "", []
        if _newest_join(folder) == before:
            return before, names


def _newest_join(folder: Path) -> str:
    try:
        return (folder / _JOINED).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return ""


def _parsed(folder: Path, name: str) -> Segment:
    return Segment.of(folder, int(name[:20]), int(name[21:31]))


def _chained(
    base: Sequence[Segment], fresh: Iterable[Segment]
) -> tuple[list[Segment], Segment | None]:
    """Segments end to end, the longest where several start alike; and the first behind a gap."""
    segments = list(base)
    stop = base[-1].stop if base else 0
    for segment in sorted(fresh, key=lambda s: (s.first, -s.stop)):
        if segment.first > stop:
            return segments, segment
        if segment.first == stop:
            segments.append(segment)
            stop = segment.stop
        elif segment.stop > stop:
            raise IntegrityError(
                f"{segment.path}: overlaps the segment before, which ends at {stop}; "
                "restore the folder"
            )
    return segments, None
