"""The case book of a line: labels that people corrected, and how training takes them up.

A batch belongs to a tick that is still to come (docs/adr/0064): whatever learns that tick learns
the batch, and a quarantine of the tick holds it back. So a version that ends at tick T knows the
batches of the ticks before T, trained on top of others or from scratch, and the same interval gives
the same bytes. Samples stay facts: gates, reports and parity go on reading what the log says.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import parts
from headrace.atomic import write_parquet
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, IntegrityError
from headrace.events import TIME, sample_schema
from headrace.labels.revisions import thin_negatives, weighted
from headrace.sample import head_tick

Ticks = tuple[int, int]

_NAME: Final = re.compile(r"^(\d{8})-(\d{3})\.parquet$")
_PLACE: Final = "__place"


def case_schema(spec: LineSpec) -> pa.Schema:
    """A judged row: the newest sample of its impression, the tick that holds it, the label that a
    person gave (0 or 1), its weight, and when it was taken.
    """
    return pa.schema(
        [
            *sample_schema(spec),
            pa.field("sample_tick", pa.int64(), nullable=False),
            pa.field("corrected", pa.int8(), nullable=False),
            pa.field("case_weight", pa.float32(), nullable=False),
            pa.field("judged_at", TIME, nullable=False),
        ]
    )


@dataclass(frozen=True)
class Batch:
    """One import: rows of `case_schema`, learned with tick `tick`."""

    name: str
    tick: int
    rows: pa.Table

    @property
    def changed(self) -> pa.Table:
        """The rows whose label a person changed; the others are confirmed, and teach nothing."""
        return self.rows.filter(pc.not_equal(self.rows["corrected"], self.rows["label"]))


class CaseBook:
    """The batches of one line, one file each: `cases/<tick>-<number>.parquet`."""

    def __init__(self, spec: LineSpec, home: Path) -> None:
        self._spec, self._home = spec, home
        self._folder = home / "cases"

    def batches(self) -> list[Batch]:
        """All batches in the order in which they were taken."""
        return [self._read(path, tick) for path, tick in self._files()]

    def judged(self) -> pa.Table:
        """The rows of all batches; a row that was confirmed first may come again."""
        empty = case_schema(self._spec).empty_table()
        return pa.concat_tables([empty, *(batch.rows for batch in self.batches())])

    def corrections(self, from_tick: int, to_tick: int, refused: Sequence[Ticks]) -> pa.Table:
        """Changed rows that ticks `[from_tick, to_tick)` bring, by `impression_offset`.

        Left out are those whose tick, or the tick of whose sample, lies in `refused`: a label of
        a row that nobody learned is nothing to correct.
        """
        files = [each for each in self._files() if from_tick <= each[1] < to_tick]
        brought = [(path, tick) for path, tick in files if not _inside(tick, refused)]
        changed = [self._read(path, tick).changed for path, tick in brought]
        rows = pa.concat_tables([case_schema(self._spec).empty_table(), *changed])
        learned = [not _inside(tick, refused) for tick in rows["sample_tick"].to_pylist()]
        rows = rows.filter(pa.array(learned, pa.bool_()))
        return rows.sort_by("impression_offset").combine_chunks()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The book for one writer: what it saw is still true when it adds."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def add(self, rows: pa.Table) -> Batch:
        """Keep rows of `case_schema` as a batch; to be called while the book is `held`.

        It belongs to the tick after the next one: no training that has been planned reads it.
        Raises `ConflictError` when two ticks were committed in the moment between.
        """
        tick = head_tick(self._home) + 1
        number = sum(other == tick for _, other in self._files())
        path = self._folder / f"{tick:08d}-{number:03d}.parquet"
        write_parquet(path, rows)
        if head_tick(self._home) > tick:
            path.unlink()
            raise ConflictError(f"{path.name}: tick {tick} was committed meanwhile; import again")
        return Batch(path.stem, tick, rows)

    def _files(self) -> list[tuple[Path, int]]:
        if not self._folder.is_dir():
            return []
        found = [(path, _NAME.match(path.name)) for path in sorted(self._folder.iterdir())]
        return [(path, int(match[1])) for path, match in found if match is not None]

    def _read(self, path: Path, tick: int) -> Batch:
        try:
            return Batch(path.stem, tick, parts.read(path, schema=case_schema(self._spec)))
        except pa.ArrowException as problem:
            raise IntegrityError(f"{path}: not readable ({problem}); restore it") from problem


def as_learned(spec: LineSpec, cases: pa.Table) -> pa.Table:
    """Changed rows as an incremental training learns them (`sample_schema`): the next revision of
    each impression, which takes back what was learned and teaches the new label at its weight.

    The weights are (w, -1) or (-1, w). Of a negative what `label.negative_rate` left of it is taken
    back. They say nothing new of conversions.
    """
    rows = cases.select(sample_schema(spec).names)
    corrected, weight = cases["corrected"].to_numpy(), cases["case_weight"].to_numpy()
    clicked = corrected > 0
    back = np.full(weight.size, -1, np.float32)
    rows = _labelled(rows, corrected)
    rows = weighted(rows, np.where(clicked, weight, back), np.where(clicked, back, weight))
    if spec.converts:
        nothing = np.zeros(weight.size, np.float32)
        rows = weighted(rows, nothing, nothing, "conversion_")
    rows = _placed(rows, "revision", rows["revision"].to_numpy() + np.int32(1))
    taken_back = thin_negatives(spec, rows.filter(pa.array(clicked)))
    both = pa.concat_tables([taken_back, rows.filter(pa.array(~clicked))])
    return both.sort_by("impression_offset").combine_chunks()


def among(rows: pa.Table, cases: pa.Table) -> pa.Table:
    """The rows in their order with the cases (same schema) spread evenly between them, so that no
    batch is made of cases.
    """
    if not cases.num_rows:
        return rows
    total = rows.num_rows + cases.num_rows
    places = ((np.arange(cases.num_rows) + 0.5) * total / cases.num_rows).astype(np.int64)
    source = np.empty(total, np.int64)
    is_case = np.zeros(total, np.bool_)
    is_case[places] = True
    source[~is_case] = np.arange(rows.num_rows)
    source[is_case] = rows.num_rows + np.arange(cases.num_rows)
    return pa.concat_tables([rows, cases]).take(pa.array(source)).combine_chunks()


def relabelled(spec: LineSpec, rows: pa.Table, cases: pa.Table) -> tuple[pa.Table, int]:
    """Rows of newest revisions as a full training learns them, and how many are corrected.

    A corrected row has its new label at its weight and stands for itself; of the others'
    negatives `label.negative_rate` are kept. Order is kept. cases: by `impression_offset`.
    """
    own = rows["impression_offset"].to_numpy()
    offsets = cases["impression_offset"].to_numpy()
    at = np.minimum(np.searchsorted(offsets, own), max(offsets.size - 1, 0))
    found = offsets[at] == own if offsets.size else np.zeros(own.size, np.bool_)
    if not found.any():
        return thin_negatives(spec, rows), 0
    rows = rows.append_column(_PLACE, pa.array(np.arange(own.size)))
    others = thin_negatives(spec, rows.filter(pa.array(~found)))
    corrected = cases["corrected"].to_numpy()[at[found]]
    weight = cases["case_weight"].to_numpy()[at[found]]
    ours = _labelled(rows.filter(pa.array(found)), corrected)
    nothing = np.zeros_like(weight)
    clicked = corrected > 0
    ours = weighted(ours, np.where(clicked, weight, nothing), np.where(clicked, nothing, weight))
    learned = pa.concat_tables([others, ours]).sort_by(_PLACE).drop_columns([_PLACE])
    return learned.combine_chunks(), int(found.sum())


def _labelled(rows: pa.Table, label: NDArray[np.int8]) -> pa.Table:
    return _placed(rows, "label", label)


def _placed(rows: pa.Table, name: str, values: NDArray[np.int8] | NDArray[np.int32]) -> pa.Table:
    place = rows.schema.get_field_index(name)
    field = rows.schema.field(place)
    return rows.set_column(place, field, pa.array(values, field.type))


def _inside(tick: int, intervals: Sequence[Ticks]) -> bool:
    return any(start <= tick < stop for start, stop in intervals)
