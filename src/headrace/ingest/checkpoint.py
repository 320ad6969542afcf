"""Checkpoints of windows and labels, so that a restart replays a few ticks, not the log."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from headrace.atomic import sync_folder, write_arrow
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.labels.state import LabelState, ReadServed
from headrace.windows import WindowState

LOG = logging.getLogger(__name__)
_FOLDER = re.compile(r"^b=(\d{8})$")
_KEPT = 2


def write(home: Path, tick: int, windows: WindowState, labels: LabelState) -> None:
    """Store the state after `tick`, whole or not at all."""
    root = home / "state"
    partial = root / f"b={tick:08d}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # A run of the windows never changes under its name, so the last checkpoint's file serves.
    before = {path.name: path for number in _present(home)[-1:] for path in _files(root, number)}
    for name, table in windows.checkpoint().items():
        _write(partial / f"windows.{name}.arrow", table, None if name == "meta" else before)
    for name, table in labels.checkpoint().items():
        _write(partial / f"labels.{name}.arrow", table, None)
    sync_folder(partial)
    final = root / f"b={tick:08d}"
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_folder(root)


def newest(
    spec: LineSpec, home: Path, head: int, served: ReadServed
) -> tuple[int, WindowState, LabelState] | None:
    """The newest readable checkpoint of a tick below `head`; None when there is none.

    One that another process removes meanwhile, or that was written for other declarations,
    is passed over: the log can always be replayed from further back. A damaged one is removed,
    before the next one takes its files over.
    """
    for tick in reversed(_present(home)):
        if tick < head:
            try:
                tables = _load(home / "state", tick)
                windows = WindowState.restore(spec, tables["windows"])
                return tick, windows, LabelState.restore(spec, tables["labels"], served)
            except (FileNotFoundError, IntegrityError, KeyError):
                continue
            except (pa.ArrowInvalid, OSError) as problem:
                LOG.warning("%s: checkpoint %d is damaged, removed: %s", home, tick, problem)
                shutil.rmtree(home / "state" / f"b={tick:08d}", ignore_errors=True)
    return None


def prune(home: Path) -> None:
    """Remove all but the newest checkpoints, and what a kill left half-written."""
    root = home / "state"
    for tick in _present(home)[:-_KEPT]:
        shutil.rmtree(root / f"b={tick:08d}", ignore_errors=True)
    for torn in root.glob("*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)


def _write(path: Path, table: pa.Table, before: Mapping[str, Path] | None) -> None:
    if before is not None and path.name in before:
        os.link(before[path.name], path)
    else:
        write_arrow(path, table)


def _present(home: Path) -> list[int]:
    root = home / "state"
    names = os.listdir(root) if root.is_dir() else []  # noqa: PTH208
    return sorted(int(match[1]) for name in names if (match := _FOLDER.match(name)))


def exists(home: Path, tick: int) -> bool:
    """Whether the state after this tick is stored."""
    return tick in _present(home)


def _files(root: Path, tick: int) -> list[Path]:
    return sorted((root / f"b={tick:08d}").glob("*.arrow"))


def _load(root: Path, tick: int) -> dict[str, dict[str, pa.Table]]:
    tables: dict[str, dict[str, pa.Table]] = {"windows": {}, "labels": {}}
    for path in _files(root, tick):
        owner, _, name = path.name.removesuffix(".arrow").partition(".")
        with pa.OSFile(str(path), "rb") as file:
            tables[owner][name] = pa.ipc.open_file(file).read_all()
    return tables
