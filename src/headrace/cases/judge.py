"""Take a sheet that people filled in into the case book; what does not fit is kept aside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.atomic import check_writable, write_text
from headrace.cases import sheet
from headrace.cases.book import CaseBook, Ticks, case_schema
from headrace.cases.sheet import Answer, Refused
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import micros
from headrace.labels.revisions import newest
from headrace.labels.state import settled_after_us
from headrace.quarantine import Quarantine
from headrace.sample import head_tick, read_samples, read_tick, tick_as_of
from headrace.settings import Settings

WEIGHT: Final = 10.0
"""What a corrected label weighs: ten rows that nobody looked at."""
MOST_WEIGHT: Final = 100.0
_TICKS: Final = 1024

Key = tuple[str, int]  # impression_id, served_at in us


@dataclass(frozen=True)
class Taken:
    """How an import ended. `changed` and `confirmed` rows were taken, as `batch`, to be learned
    with tick `tick`; `open` ones have no corrected label; `refused` ones lie in `refusals`.
    """

    batch: str | None
    tick: int | None
    changed: int
    confirmed: int
    open: int
    refused: int
    refusals: str | None
    reasons: list[str]


def take(settings: Settings, spec: LineSpec, path: Path, weight: float = WEIGHT) -> Taken:
    """Check a sheet row by row and take what is right.

    Refused are, beside what `sheet.read` refuses: an impression that the line does not know or
    that lies in quarantine; a label that is another by now, or may still change by itself; a row
    that was judged before, unless it was only confirmed; a click taken back that a conversion
    followed. They are written to `<name>.refused.csv` beside the file, each with its reason, to be
    repaired and imported. Raises `InputError` for a file that is no sheet.
    """
    if not 1 <= weight <= MOST_WEIGHT:
        raise InputError(f"--weight {weight:g} is not between 1 and {MOST_WEIGHT:g}; choose 10")
    found = sheet.read(spec, path)
    refusals = path.with_name(f"{path.stem.removesuffix('.refused')}.refused.csv")
    check_writable(refusals)
    home = settings.line_home(spec.line)
    book = CaseBook(spec, home)
    with book.held():
        rows, refused = _judged(spec, home, book, found.answers, weight)
        refused = sorted([*found.refused, *refused], key=lambda each: each.place)
        if refused:
            write_text(refusals, _kept_aside(found.columns, refused))
        batch = book.add(rows) if rows.num_rows else None
    changed = 0 if batch is None else batch.changed.num_rows
    return Taken(
        batch=None if batch is None else batch.name,
        tick=None if batch is None else batch.tick,
        changed=changed,
        confirmed=rows.num_rows - changed,
        open=found.open,
        refused=len(refused),
        refusals=str(refusals) if refused else None,
        reasons=[f"line {each.place}: {each.reason}" for each in refused],
    )


def _judged(
    spec: LineSpec, home: Path, book: CaseBook, answers: Sequence[Answer], weight: float
) -> tuple[pa.Table, list[Refused]]:
    """The answers that hold, as rows of the book in the sheet's order, and the others."""
    known = _known(spec, home, answers)
    head = head_tick(home)
    clock = _Clock(read_tick(home, head - 1).at_us if head else 0, settled_after_us(spec))
    before = _before(book)
    rows, refused = [], []
    for answer in answers:
        row = known.get((answer.impression_id, answer.served_us))
        reason = _wrong(spec, answer, row, before, clock)
        if row is None or reason is not None:
            refused.append(Refused(answer.place, answer.cells, reason or ""))
            continue
        told = {"corrected": answer.corrected, "case_weight": weight}
        rows.append(row | told | {"judged_at": time.time_ns() // 1_000})
    return pa.Table.from_pylist(rows, schema=case_schema(spec)), refused


@dataclass(frozen=True)
class _Clock:
    """The time of the newest tick, and how long after it is known an impression settles."""

    now_us: int
    settles_us: int


def _wrong(
    spec: LineSpec,
    answer: Answer,
    row: dict[str, Any] | None,
    before: dict[int, tuple[int, int]],
    clock: _Clock,
) -> str | None:
    """Why the answer is not taken; None when it is."""
    if row is None:
        return (
            f"impression_id {answer.impression_id!r} has no sample that was served at "
            f"{answer.cells['served_at']}; if its window is in quarantine, release it first"
        )
    if row["label"] != answer.label:
        return f"label is {row['label']} by now, not {answer.label}; export the row again"
    judged = before.get(row["impression_offset"])
    if judged is not None and (judged[0] != judged[1] or judged[0] == answer.corrected):
        return f"was judged before, as {judged[0]}; leave corrected_label empty"
    known_us = max(micros(row["event_at"]), micros(row["emitted_at"]))
    left_us = known_us + clock.settles_us - clock.now_us
    if left_us > 0:
        left = f"{left_us / 60e6:.1f} min of the log's time"
        return f"label may still change by itself for {left}; import it then"
    if answer.corrected < answer.label and spec.converts and row["conversion"]:
        return "label 1 was followed by a conversion, so it was a click; leave it"
    return None


def _before(book: CaseBook) -> dict[int, tuple[int, int]]:
    """By impression offset, the newest judgement: the corrected label, and what it corrects."""
    rows = book.judged()
    names = ("impression_offset", "corrected", "label")
    columns = (rows[name].to_pylist() for name in names)
    return {offset: (corrected, label) for offset, corrected, label in zip(*columns, strict=True)}


def _known(spec: LineSpec, home: Path, answers: Sequence[Answer]) -> dict[Key, dict[str, Any]]:
    """The newest sample of each answered impression outside quarantine, with its `sample_tick`."""
    if not answers:
        return {}
    served = [answer.served_us for answer in answers]
    # a served row waits a horizon for its impression, which settles a horizon later
    latest_us = max(served) + 2 * settled_after_us(spec)
    first, last = (
        tick_as_of(home, min(served)),
        min(tick_as_of(home, latest_us) + 1, head_tick(home)),
    )
    ids = pa.array({answer.impression_id for answer in answers}, pa.string())
    refused: list[Ticks] = [(q["from"], q["to"]) for q in Quarantine(home).intervals()]
    found = [read_samples(spec, home, 0, 0)]
    for start in range(first, last, _TICKS):
        part = read_samples(spec, home, start, min(start + _TICKS, last), exclude=refused)
        found.append(part.filter(pc.is_in(part["impression_id"], value_set=ids)))
    rows = newest(pa.concat_tables(found).combine_chunks())
    emitted = rows["emitted_at"].cast(pa.int64()).to_pylist()
    tick = np.array([tick_as_of(home, at_us - 1) for at_us in emitted], np.int64)
    told = rows.append_column("sample_tick", pa.array(tick, pa.int64())).to_pylist()
    us = rows["served_at"].cast(pa.int64()).to_pylist()
    return {(row["impression_id"], at): row for row, at in zip(told, us, strict=True)}


def _kept_aside(columns: Sequence[str], refused: Sequence[Refused]) -> str:
    names = [*(name for name in columns if name != sheet.REASON), sheet.REASON]
    rows = [{**each.cells, sheet.REASON: each.reason} for each in refused]
    return sheet.written(names, rows)
