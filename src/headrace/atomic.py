"""Files that appear whole or not at all: tmp, fsync, rename, fsync of the folder.

Arrow is imported by those who write tables: a DAG's task that reads one record must not pay for it.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import EnvironmentFault

if TYPE_CHECKING:
    import pyarrow as pa

_STREAM_BYTES: Final = 2**20
_DICTIONARY_BYTES: Final = 2**15  # a column of ids outgrows it early, and is written plainly
_SMALL_ROWS: Final = 1024
"""Of fewer rows, Zstandard sets up for each column for longer than it works: a part of a tick, 30
rows of 44 columns, takes three times as long to write, and to read, and is not smaller.
"""


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an `EnvironmentFault` that names it."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise EnvironmentFault(
            f"{folder}: {problem.strerror}; make room on the disk, then start again: "
            "nothing half-written will be read"
        ) from problem


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Write sorted, indented JSON durably; replaces a file of that name."""
    write_text(path, json.dumps(dict(body), indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file durably; replaces a file of that name. A device or pipe is written to."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file durably; replaces a file of that name."""
    with whole(path) as partial:
        partial.write_bytes(content)


def check_writable(path: Path) -> None:
    """Raise `EnvironmentFault` when this file could not be written; leaves nothing behind."""
    if path.is_dir():
        raise EnvironmentFault(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():  # a device or pipe
        return
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir():
        raise EnvironmentFault(
            f"{path} cannot be written, because {folder} is a file; give another path"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\n")
    except OSError as problem:
        raise EnvironmentFault(
            f"{path} cannot be written, because {folder} takes no new file ({problem.strerror}); "
            "give another path"
        ) from None


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a Parquet file durably; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    with whole(path) as partial:
        pq.write_table(
            table.combine_chunks(),
            partial,
            compression="snappy" if table.num_rows < _SMALL_ROWS else "zstd",
            dictionary_pagesize_limit=_DICTIONARY_BYTES,
        )


def write_arrow(path: Path, table: pa.Table, *, in_pieces: bool = False) -> None:
    """Write an Arrow IPC file; the caller publishes its folder.

    `in_pieces`: with a record batch for each piece that the table comes in, else with one.

    Arrow opens it: into a file of Python's, each of its hundred small writes would wait for the
    interpreter, and a thread that answers requests for them.
    """
    import pyarrow as pa

    with (
        pa.output_stream(str(path), compression=None, buffer_size=_STREAM_BYTES) as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table if in_pieces else table.combine_chunks())
    _sync(path)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to: it becomes `path` after the block, and vanishes if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
