"""The rows of a full training: every impression of the past once, as its features stood.

They are written to Arrow files of `block_rows` rows each and read from there, memory-mapped, as
often as there are epochs. Memory is bounded by one chunk of the history, whatever its length, and
12 bytes for each correction; how the history was cut into chunks leaves no trace in the files.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.atomic import disk_faults
from headrace.cases import CaseBook, relabelled
from headrace.declaration import LineSpec
from headrace.events import TIME, input_fields, offset_columns, weight_columns
from headrace.labels.revisions import Corrected, newest
from headrace.sample import count_samples, sample_parts
from headrace.settings import Settings
from headrace.slices import even
from headrace.store import Store

Ticks = tuple[int, int]
Advance = Callable[[int, int, str], None]
"""Is told of progress: how much is done, of how much, and what."""

CHUNK_ROWS: Final = 1 << 18
"""Samples that are asked of Feast's history at a time."""
BLOCK_ROWS: Final = 1 << 16
_OF_SAMPLES: Final = ("impression_id", "served_at", "event_at", "revision", "label")


def quiet(done: int, total: int, note: str) -> None:
    """Tell nobody."""


@dataclass
class Seen:
    """What a version says of its samples: how many, the newest event behind them, its labels.

    cases: labels that people corrected, which it learned in place of or beside them.
    """

    rows: int = 0
    impressions: int = 0
    positives: int = 0
    conversions: int = 0
    cases: int = 0
    newest_offset: int = -1
    event_at_us: int = 0

    def add(self, spec: LineSpec, samples: pa.Table) -> None:
        """Count these samples too (`events.sample_schema`, those columns that are needed)."""
        if not samples.num_rows:
            return
        once = newest(samples)
        self.rows += samples.num_rows
        self.impressions += once.num_rows
        self.positives += int(pc.sum(once["label"]).as_py())
        if spec.converts:
            self.conversions += int(pc.sum(once["conversion"]).as_py())
        offsets = [pc.max(samples[name]).as_py() for name in offset_columns(spec)]
        self.newest_offset = max(self.newest_offset, *offsets)
        event_at = int(pc.max(samples["event_at"]).cast(pa.int64()).as_py())
        self.event_at_us = max(self.event_at_us, event_at)


class Rows:
    """Prepared rows in a folder: the model's inputs, weights and `event_at`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blocks = len(list(folder.glob("*.arrow")))

    def block(self, place: int) -> pa.Table:
        """One block, mapped into memory; all but the last hold equally many rows."""
        with pa.memory_map(str(_file(self.folder, place))) as file:
            return pa.ipc.open_file(file).read_all()


def block_rows(spec: LineSpec) -> int:
    """Rows of a block: whole batches, so that where a block ends changes no batch."""
    return max(1, BLOCK_ROWS // spec.model.batch_size) * spec.model.batch_size


def prepare(
    settings: Settings,
    spec: LineSpec,
    to_tick: int,
    excluded: Sequence[Ticks],
    folder: Path,
    *,
    chunk_rows: int = CHUNK_ROWS,
    advance: Advance = quiet,
) -> tuple[Rows, Seen]:
    """Write the rows to learn of ticks `[0, to_tick)` but the `excluded` ones into `folder`.

    Each impression comes at its newest revision with the plain weights of its label, where that
    revision stands in the stream; of the negatives `label.negative_rate`. A label that a person
    corrected is learned as corrected. Features are those of Feast's point-in-time join at the time
    of the request.
    """
    home, store = settings.line_home(spec.line), Store(settings)
    folder.mkdir(parents=True, exist_ok=True)
    seen, corrected = Seen(), Corrected()
    cases = CaseBook(spec, home).corrections(0, to_tick, excluded)
    total = count_samples(home, 0, to_tick, excluded)
    of_revision = ("impression_offset", "revision")
    for part in sample_parts(
        spec, home, 0, to_tick, excluded, columns=of_revision, corrections_only=True
    ):
        corrected.see(part)
    facts = (*_OF_SAMPLES, *weight_columns(spec.converts), *offset_columns(spec))
    facts = (*facts, "conversion") if spec.converts else facts
    columns = list(dict.fromkeys((*spec.columns, *facts)))
    samples = sample_parts(spec, home, 0, to_tick, excluded, columns=columns)

    def chunks() -> Iterator[pa.Table]:
        done = 0
        for chunk in even(samples, chunk_rows):
            rows = corrected.newest(chunk)
            seen.add(spec, rows)
            learned, count = relabelled(spec, rows, cases)
            seen.cases += count
            yield _joined(store, spec, learned)
            done += chunk.num_rows
            advance(done, total, "features from history")

    with disk_faults(folder):
        for place, block in enumerate(even(chunks(), block_rows(spec))):
            path = str(_file(folder, place))
            with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, block.schema) as writer:
                writer.write_table(block)
    return Rows(folder), seen


@contextmanager
def workspace(settings: Settings, spec: LineSpec) -> Iterator[Path]:
    """A folder for the time of a training, below the line's home; it is gone after the block.

    Folders of trainings that were killed are removed first.
    """
    root = settings.line_home(spec.line) / "training"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("full-*"):
        with (left / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it runs
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="full-", dir=root))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _joined(store: Store, spec: LineSpec, samples: pa.Table) -> pa.Table:
    """Samples, in their order, as rows to learn with inputs as Feast's history gives them."""
    asked = samples.select(list(spec.columns)).append_column(
        "request_at", samples["served_at"].cast(pa.int64())
    )
    features = store.read_history(spec, asked)
    inputs = dict.fromkeys((*spec.model.categorical, *spec.model.numeric))
    weights = weight_columns(spec.converts)
    fields = [field for field in input_fields(spec) if field.name in inputs]
    told = [*(pa.field(name, pa.float32()) for name in weights), pa.field("event_at", TIME)]
    columns = [features[field.name] for field in fields] + [samples[field.name] for field in told]
    return pa.table(columns, schema=pa.schema([*fields, *told]))


def _file(folder: Path, place: int) -> Path:
    return folder / f"{place:08d}.arrow"
