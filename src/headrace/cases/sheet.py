"""The CSV sheet of cases: what people get to label, and how what they return is read.

One row an impression, UTF-8, comma separated. `corrected_label` is empty until somebody fills it
in with 0 or 1; rows that stay empty are passed over, and columns beyond the needed ones are for
people alone.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import moment

NEEDED: Final = ("line", "impression_id", "served_at", "label", "corrected_label")
REASON: Final = "reason"
MOST_ROWS: Final = 10_000
"""Of one sheet: what people label by hand has fewer, and a window should not be made of them."""
_WHO: Final = ("line", "impression_id", "request_id", "served_at", "version", "arm")
_HOW: Final = ("score", "label", "logloss", "residual", "slice", "corrected_label")
_EXTRA: Final = "__extra"


@dataclass(frozen=True)
class Answer:
    """A row of a sheet that somebody filled in, sound by itself: `place` is its line's number."""

    place: int
    cells: Mapping[str, str]
    impression_id: str
    served_us: int
    label: int
    corrected: int


@dataclass(frozen=True)
class Refused:
    """A row that was not taken, and why."""

    place: int
    cells: Mapping[str, str]
    reason: str


@dataclass(frozen=True)
class Sheet:
    """What a file holds: columns in order, answers, rows refused already, and how many are open."""

    columns: list[str]
    answers: list[Answer]
    refused: list[Refused]
    open: int


def columns_of(spec: LineSpec) -> list[str]:
    """Columns of an exported sheet, the empty one last."""
    return [*_WHO, *own_columns(spec), *_HOW]


def own_columns(spec: LineSpec) -> list[str]:
    """The columns of the line that stand in its sheet: all but those with the name of another."""
    return [name for name in spec.columns if name not in (*_WHO, *_HOW, REASON)]


def written(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV text; a missing value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(spec: LineSpec, path: Path) -> Sheet:
    """Read a sheet. Raises `InputError` for a file that is none, or lacks a column."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin it with a mark
    except OSError as problem:
        raise InputError(f"{path}: not readable ({problem.strerror}); give a CSV file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save it as CSV UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_EXTRA, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as problem:
        line = reader.reader.line_num
        raise InputError(f"{path}: line {line} is no CSV ({problem}); export it again") from None
    lacking = [name for name in NEEDED if name not in columns]
    if lacking:
        raise InputError(
            f"{path}: has no column {lacking[0]!r}; keep the columns of `headrace cases export`, "
            "separated by commas"
        )
    return _sorted_out(spec, path, columns, rows)


def _sorted_out(
    spec: LineSpec, path: Path, columns: list[str], rows: list[tuple[int, dict[str, Any]]]
) -> Sheet:
    answers: list[Answer] = []
    refused: list[Refused] = []
    for place, row in rows:
        cells = {name: (row[name] or "").strip() for name in columns}
        if _EXTRA in row or None in row.values():
            reason = f"has not the {len(columns)} cells of the header; quote cells with commas"
            refused.append(Refused(place, cells, reason))
        elif cells["corrected_label"]:
            found = _answer(spec, place, cells)
            if isinstance(found, Answer):
                answers.append(found)
            else:
                refused.append(Refused(place, cells, found))
    if len(answers) > MOST_ROWS:
        raise InputError(f"{path}: {len(answers)} labelled rows, at most {MOST_ROWS}; split it")
    filled = len(answers) + len(refused)
    times = Counter((answer.impression_id, answer.served_us) for answer in answers)
    for answer in answers:
        if (count := times[answer.impression_id, answer.served_us]) > 1:
            reason = f"impression_id {answer.impression_id!r} is labelled {count} times; keep one"
            refused.append(Refused(answer.place, answer.cells, reason))
    single = [each for each in answers if times[each.impression_id, each.served_us] == 1]
    return Sheet(columns, single, refused, len(rows) - filled)


def _answer(spec: LineSpec, place: int, cells: Mapping[str, str]) -> Answer | str:
    """The row as an answer, or the reason why it is none."""
    if cells["line"] != spec.line:
        return f"line {cells['line']!r} is not {spec.line!r}; import it with --line {cells['line']}"
    for name in ("corrected_label", "label"):
        if cells[name] not in ("0", "1"):
            return f"{name} {cells[name]!r} is neither 0 nor 1; write one of them"
    if not cells["impression_id"]:
        return "impression_id is empty; export the row again"
    try:
        served_us = moment("served_at", cells["served_at"])
    except InputError as problem:
        return str(problem)
    return Answer(
        place,
        cells,
        cells["impression_id"],
        served_us,
        int(cells["label"]),
        int(cells["corrected_label"]),
    )
