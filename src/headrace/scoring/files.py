"""Files of rows to score, read in bounded memory: Parquet, CSV, Arrow IPC (file or stream)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from headrace.errors import InputError
from headrace.scoring.intake import Refused

FORMATS: Final = (".parquet", ".csv", ".arrow")
_BATCH_ROWS: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 24


class InputFile:
    """One open file; a context manager. All columns of a CSV are text, an empty field is null.

    `total` is the number of rows, or of bytes for a CSV and a stream; `done` counts in the same.
    `torn`: lines of a CSV with too few or too many fields, in the part that was read.
    """

    def __init__(self, path: Path) -> None:
        """Raises `InputError` for a file that is absent, of an unknown format or not readable."""
        self.path = path
        self.torn: list[Refused] = []
        self._ends = ExitStack()
        if path.suffix not in FORMATS:
            raise InputError(f"{path}: the name ends in none of {', '.join(FORMATS)}; rename it")
        if not path.is_file():
            raise InputError(f"{path}: no such file; give one with a row for each thing to score")
        self._rows = 0
        self._source: Any = None
        with self._readable():
            opened = {".parquet": self._parquet, ".csv": self._csv, ".arrow": self._arrow}
            self.schema, self._batches, self.total = opened[path.suffix]()

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def done(self) -> int:
        """How much was read so far."""
        return self._rows if self._source is None else int(self._source.tell())

    def tables(self) -> Iterator[pa.Table]:
        """The rows, some at a time, once. Raises `InputError` where the file is damaged."""
        with self._readable():
            for batch in self._batches:
                self._rows += batch.num_rows
                yield pa.Table.from_batches([batch], schema=self.schema)

    def _parquet(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch], int]:
        file = self._ends.enter_context(pq.ParquetFile(self.path))
        schema = file.schema_arrow.remove_metadata()
        return schema, file.iter_batches(_BATCH_ROWS), file.metadata.num_rows

    def _arrow(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch], int]:
        source = self._ends.enter_context(pa.memory_map(str(self.path)))
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            stream, self._source = pa.ipc.open_stream(source), source
            return stream.schema.remove_metadata(), iter(stream), source.size()
        batches = (file.get_batch(place) for place in range(file.num_record_batches))
        rows = sum(file.get_batch(place).num_rows for place in range(file.num_record_batches))
        return file.schema.remove_metadata(), batches, rows

    def _csv(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch], int]:
        read = pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
        parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=self._torn)
        with pacsv.open_csv(self.path, read_options=read, parse_options=parse) as first:
            names = first.schema.names
        self.torn.clear()  # what the look at the header came across comes again
        text = pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        self._source = self._ends.enter_context(pa.OSFile(str(self.path)))
        reader = self._ends.enter_context(
            pacsv.open_csv(
                self._source, read_options=read, parse_options=parse, convert_options=text
            )
        )
        return reader.schema, iter(reader), self.path.stat().st_size

    def _torn(self, row: Any) -> str:
        why = f"line {row.number}: " if row.number is not None else ""
        why += f"{row.actual_columns} fields where the header has {row.expected_columns}"
        self.torn.append(Refused(None, why, row.text))
        return "skip"

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as problem:
            first = str(problem).split("\n", maxsplit=1)[0]
            form = self.path.suffix.removeprefix(".")
            raise InputError(
                f"{self.path}: not readable as {form}: {first}; write the file again"
            ) from None
