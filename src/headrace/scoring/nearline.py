"""Nearline: follow a log of the line, score what is new with the champion, write Parquet parts.

A part is named by the offsets `[from, to)` of the log whose rows it holds, and appears whole; each
begins where the one before ended. So the newest name is the checkpoint: a process that is killed
goes on from there, and no row is lost or scored twice.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import pyarrow as pa

from headrace.atomic import disk_faults, write_parquet
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import TIME
from headrace.line import LineStore
from headrace.log.files import take_lock
from headrace.log.stamp import clock_us
from headrace.scoring.answers import answered, inputs_of
from headrace.scoring.impressions import AT, LogRows, Of
from headrace.serving.swap import Follower
from headrace.settings import Settings
from headrace.store import Store

LOG = logging.getLogger(__name__)
MOST: Final = 1 << 16
"""Records of the log that one part covers at most."""
_PART: Final = re.compile(r"^(\d{20})-(\d{20})\.parquet$")
_PATIENCE_S: Final = 0.05


@dataclass(frozen=True, order=True)
class Part:
    """A written part: offsets `[start, stop)` of the log, and its file."""

    start: int
    stop: int
    path: Path


class Nearline:
    """Scores one log of a line into one folder. One at a time: who comes second is told so."""

    def __init__(
        self, settings: Settings, spec: LineSpec, which: Of, models: Follower, *, most: int = MOST
    ) -> None:
        """Raises `EnvironmentFault` while another process writes the folder, `IntegrityError` for
        parts of another log.
        """
        home = settings.line_home(spec.line)
        self._spec, self._models, self._most = spec, models, most
        self._store = Store(settings)
        self.rows = 0
        self._rows = LogRows.of(spec, home, which)
        self.folder = scores_folder(home, which)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.folder)
        for torn in self.folder.glob("*.tmp"):
            torn.unlink()
        written = parts(self.folder)
        self._written = self._read = written[-1].stop if written else 0
        if self._read > self._rows.log.head:
            raise IntegrityError(
                f"{written[-1].path}: the log ends before, at offset {self._rows.log.head}; "
                "restore the log, or remove the scores of another one"
            )

    def look(self) -> int:
        """Score what is new, one part at most; returns how far behind it is then, in records.

        `rows` counts what was scored. Raises `EnvironmentFault` where there is no champion, or
        history cannot be read.
        """
        ready = self._rows.ready()
        while self._read < ready:
            stop = min(self._read + self._most, ready)
            rows = self._rows.read(self._read, stop)
            if rows.num_rows:
                self._write(self._scored(rows), stop)
            self._read = stop
            if rows.num_rows:
                break
        return ready - self._read

    def close(self) -> None:
        """Give the folder's lock back."""
        self._lock.close()

    def _scored(self, rows: pa.Table) -> pa.Table:
        self._models.current()  # without one, history is not asked in vain
        inputs = inputs_of(self._store, self._spec, rows, AT, 0)
        with self._models.use() as loaded:
            told = answered(self._spec, loaded, rows, inputs)
        dropped = {*self._spec.columns, *(f"{view}__at" for view in self._spec.views)}
        told = told.select([name for name in told.column_names if name not in dropped])
        return told.append_column("scored_at", pa.repeat(pa.scalar(clock_us(), TIME), len(told)))

    def _write(self, scored: pa.Table, stop: int) -> None:
        with disk_faults(self.folder):
            write_parquet(self.folder / f"{self._written:020d}-{stop:020d}.parquet", scored)
        self._written = stop
        self.rows += scored.num_rows


def run(
    settings: Settings,
    spec: LineSpec,
    stop: threading.Event,
    which: Of,
    *,
    once: bool = False,
    every_s: float = 1.0,
    most: int = MOST,
) -> int:
    """Follow the log until `stop`, a look `every_s`; with `once` until nothing is left to score.

    Returns how many rows were scored. What may pass (no champion yet, a store that is away) is told
    and tried again, but with `once` raised.
    """
    lines = LineStore(settings.line_store_url(spec.line), spec.line)
    models = Follower(spec, lines)
    nearline = Nearline(settings, spec, which, models, most=most)
    models.start(prepare=lambda: None)
    told = ""
    try:
        while not stop.is_set():
            try:
                if not _await(models, lines, stop):
                    break
                behind, told = nearline.look(), ""
            except EnvironmentFault as problem:
                if once:
                    raise
                if str(problem) != told:
                    LOG.error("%s: %s", spec.line, problem)
                told, behind = str(problem), 0
            if once and not behind:
                break
            if not behind:
                stop.wait(every_s)
        return nearline.rows
    finally:
        models.stop()
        nearline.close()


def _await(models: Follower, lines: LineStore, stop: threading.Event) -> bool:
    """Wait for the model of the champion, if there is one; false when stopped first."""
    while not models.ready and not models.fault and lines.champion() and not stop.is_set():
        time.sleep(_PATIENCE_S)
    return not stop.is_set()


def scores_folder(home: Path, which: Of) -> Path:
    """Where the parts of a log's scores lie."""
    return home / "scores" / which


def parts(folder: Path) -> list[Part]:
    """The written parts, oldest first. Raises `IntegrityError` where one between them is gone."""
    found = sorted(
        Part(int(match[1]), int(match[2]), path)
        for path in folder.glob("*.parquet")
        if (match := _PART.match(path.name))
    )
    for before, after in pairwise(found):
        if before.stop != after.start:
            raise IntegrityError(
                f"{after.path}: begins at offset {after.start}, but the part before ends at "
                f"{before.stop}; restore what is missing, or remove the parts after it"
            )
    return found
