"""Files that appear whole or not at all: tmp, fsync, rename, fsync of the folder.

Arrow is imported by those who write tables: a DAG's task that reads one record must not pay for it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import EnvironmentFault

if TYPE_CHECKING:
    import pyarrow as pa


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
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, body: dict[str, Any]) -> None:
    """Write sorted, indented JSON durably; replaces a file of that name."""
    text = json.dumps(body, indent=1, sort_keys=True) + "\n"
    partial = _partial(path)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _publish(partial, path)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a Parquet file durably; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    partial = _partial(path)
    pq.write_table(table.combine_chunks(), partial, compression="zstd")
    _sync_file(partial)
    _publish(partial, path)


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file; the caller publishes its folder."""
    import pyarrow as pa

    with path.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        file.flush()
        os.fsync(file.fileno())


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".tmp")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(partial: Path, path: Path) -> None:
    partial.replace(path)
    sync_folder(path.parent)
