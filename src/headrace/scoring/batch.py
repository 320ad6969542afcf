"""Score many rows at once: of a file, or the impressions of an interval of the log.

Rows go through memory a chunk at a time. In this process each is scored and written as it comes;
for Spark the chunks lie in files beside the output while its workers score them, by the same
function, and are then joined in their order: both engines leave the same rows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from headrace import spark
from headrace.atomic import check_writable, disk_faults, whole, write_arrow
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.line import LineStore
from headrace.log.stamp import clock_us
from headrace.past import Advance, quiet
from headrace.scoring.answers import Job, Scoring, for_workers, scored_there
from headrace.scoring.intake import Intake, Refused
from headrace.settings import Settings
from headrace.slices import even

ENGINES: Final = ("local", "spark")
CHAMPION: Final = "champion"
CHUNK_ROWS: Final = 1 << 18
"""Rows that are scored at a time; history is searched once for each chunk."""
_PARTS: Final = pa.schema([("part", pa.int64())])


class Rows(Protocol):
    """Where rows come from (`files.InputFile`, `impressions.Interval`)."""

    @property
    def path(self) -> Path: ...

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def total(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def torn(self) -> list[Refused]: ...

    def tables(self) -> Iterator[pa.Table]: ...


@dataclass(frozen=True)
class Scored:
    """What was written: `rows` of them, by which version; `refused` lie in `refusals`."""

    line: str
    version: str
    watermark_us: int
    output: Path
    rows: int
    refused: int
    refusals: Path | None


def score(
    settings: Settings,
    spec: LineSpec,
    source: Rows,
    output: Path,
    *,
    version: str = CHAMPION,
    at_column: str | None = None,
    engine: str = "local",
    master: str = "local[2]",
    chunk_rows: int = CHUNK_ROWS,
    advance: Advance = quiet,
) -> Scored:
    """Write the rows of `source` with their scores to a Parquet file, which appears whole.

    Columns: those of the rows, then `answers.answer_fields`. `at_column` names the moments at which
    the rows were asked (see `answers`); without one all are asked now. Refused rows go, with
    their reasons, to `<output>.refused.jsonl`. Raises `InputError` for an unknown version, for
    columns that do not fit the line, and when every row was refused; `EnvironmentFault` without a
    champion, where the output cannot be written, and when Spark cannot start. A cluster's workers
    must see home and output under these paths and have this package.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown; use {' or '.join(ENGINES)}")
    check_writable(output)
    if engine == "spark" and settings.offline_store == "spark":
        raise EnvironmentFault(
            "HEADRACE_OFFLINE_STORE=spark: Spark's workers cannot ask Spark for history; leave "
            "out --spark, and Spark joins while this process scores"
        )
    lines = LineStore(settings.line_store_url(spec.line), spec.line)
    chosen = lines.get(_champion(lines) if version == CHAMPION else version)
    lines.require_files(chosen.version)
    job = Job(for_workers(settings), spec, chosen.version, at_column, clock_us())
    intake = Intake(spec, source.schema, at_column, str(source.path))
    refusals = output.with_name(f"{output.name}.refused.jsonl")
    with disk_faults(output.parent), _refusing(refusals, source) as refused:
        kept = _kept(source, intake, refused, chunk_rows, advance)
        write = _write_local if engine == "local" else partial(_write_by_spark, master=master)
        rows = write(job, kept, output)
    count = refused.count
    return Scored(
        spec.line, chosen.version, chosen.watermark_us, output, rows, count,
        refusals if count else None,
    )  # fmt: skip


def _champion(lines: LineStore) -> str:
    champion = lines.champion()
    if champion is None:
        raise EnvironmentFault(
            f"line {lines.line!r} has no champion; run full_train first, or give --version"
        )
    return champion.version


class _Refusals:
    """Counts refused rows and writes one a line."""

    def __init__(self, file: IO[str], torn: list[Refused]) -> None:
        self._file, self._torn = file, torn
        self.count = 0
        self.first = ""

    def add(self, refused: Iterable[Refused]) -> None:
        """Keep them, and the lines of a CSV that were torn until now."""
        for one in [*self._torn, *refused]:
            self._file.write(json.dumps(one._asdict(), default=str) + "\n")
            self.first = self.first or one.reason
            self.count += 1
        self._torn.clear()


@contextmanager
def _refusing(path: Path, source: Rows) -> Iterator[_Refusals]:
    """Refused rows go to `path`, which is there afterwards only if there were any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    partial_path = path.with_name(path.name + ".tmp")
    try:
        with partial_path.open("w", encoding="utf-8") as file:
            refused = _Refusals(file, source.torn)
            yield refused
    finally:
        if partial_path.exists() and partial_path.stat().st_size:
            partial_path.replace(path)
        else:
            partial_path.unlink(missing_ok=True)


def _kept(
    source: Rows, intake: Intake, refused: _Refusals, chunk_rows: int, advance: Advance
) -> Iterator[pa.Table]:
    """The rows that can be scored, chunk by chunk; one chunk, which may be empty, at least."""
    first, kept, empty = 1, 0, source.schema.empty_table()
    for chunk in even(source.tables(), chunk_rows):
        rows, wrong = intake.take(chunk, first)
        refused.add(wrong)
        first += chunk.num_rows
        if rows.num_rows:
            kept += rows.num_rows
            yield rows
        advance(source.done, source.total, "scores")
    refused.add([])
    if not kept:
        if refused.count:
            raise InputError(
                f"{source.path}: all {refused.count} rows were refused, the first because of "
                f"{refused.first}; correct the file"
            )
        yield intake.take(empty, first)[0]


def _write_local(job: Job, kept: Iterator[pa.Table], output: Path) -> int:
    scoring = Scoring(job)
    return _write(output, (scoring.scored(rows) for rows in kept))


def _write_by_spark(job: Job, kept: Iterator[pa.Table], output: Path, *, master: str) -> int:
    folder = Path(tempfile.mkdtemp(prefix=f"{output.name}.", dir=output.parent))
    try:
        parts = 0
        for parts, rows in enumerate(kept, start=1):
            write_arrow(_part(folder, parts - 1), rows)
        with spark.session(master) as session:
            numbers = pa.table({"part": pa.array(range(parts), pa.int64())})
            frame = spark.frame(session, numbers, parts)
            done = spark.map_partitions(frame, partial(_score_parts, job, folder.resolve()), _PARTS)
            spark.collect(done)
        return _write(output, (_mapped(_scored_part(folder, part)) for part in range(parts)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _score_parts(job: Job, folder: Path, numbers: pa.Table) -> pa.Table:
    """What a worker does: score the parts of these numbers, each to a file beside it."""
    for part in numbers["part"].to_pylist():
        write_arrow(_scored_part(folder, part), scored_there(job, _mapped(_part(folder, part))))
    return numbers


def _write(output: Path, tables: Iterable[pa.Table]) -> int:
    rows = 0
    with whole(output) as path:
        writer: Any = None
        try:
            for table in tables:
                if writer is None:
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table)
                rows += table.num_rows
        finally:
            if writer is not None:
                writer.close()
    return rows


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _part(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:06d}.arrow"


def _scored_part(folder: Path, number: int) -> Path:
    return folder / f"scored-{number:06d}.arrow"
