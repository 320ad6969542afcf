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
from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.atomic import disk_faults, write_parquet
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import TIME
from headrace.line import LineStore
from headrace.log.files import take_lock
from headrace.log.stamp import clock_us
from headrace.scoring.answers import answered, inputs_of
from headrace.scoring.impressions import AT, LogRows, Of
from headrace.scoring.newest import Newest
from headrace.scoring.pulse import Pulse, Standing
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
        self.standing = Standing()
        self._rows = LogRows.of(spec, home, which)
        self._newest = Newest(spec, home) if which == "impressions" else None
        self.folder = scores_folder(home, which)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.folder)
        for torn in self.folder.glob("*.tmp"):
            torn.unlink()
        written = parts(self.folder)
        self._parts = deque(written)
        self._written = self._read = written[-1].stop if written else 0
        if self._read > self._rows.log.head:
            raise IntegrityError(
                f"{written[-1].path}: the log ends before, at offset {self._rows.log.head}; "
                "restore the log, or remove the scores of another one"
            )

    def look(self) -> int:
        """Score what is new, one part at most; returns how far behind it is then, in records.

        `standing` says what came of it. Raises `EnvironmentFault` where there is no champion, or
        history cannot be read.
        """
        began, ready = time.monotonic(), self._rows.ready()
        scored = None
        while self._read < ready and scored is None:
            stop = min(self._read + self._most, ready)
            rows = self._rows.read(self._read, stop)
            if rows.num_rows:
                scored = self._scored(rows, stop)
                self._write(scored, stop)
            self._read = stop
        behind, look_s = ready - self._read, time.monotonic() - began
        self.standing = replace(self.standing, behind=behind, offset=self._read, look_s=look_s)
        if scored is not None:
            self.standing = replace(
                self.standing,
                rows=self.standing.rows + scored.num_rows,
                newest_at=pc.max(scored[AT].cast(pa.int64())).as_py() / 1e6,
                version=scored["version"][-1].as_py(),
            )
        return behind

    def forget(self, age_us: int) -> None:
        """Remove parts that were written longer ago than `age_us`; the newest stays, it says where
        to go on.
        """
        while len(self._parts) > 1:
            if self._parts[0].path.stat().st_mtime > time.time() - age_us / 1e6:
                break
            self._parts.popleft().path.unlink()

    def close(self) -> None:
        """Give the folder's lock back."""
        self._lock.close()

    def _scored(self, rows: pa.Table, stop: int) -> pa.Table:
        self._models.current()  # without one, history is not asked in vain
        inputs = self._inputs(rows, stop)
        with self._models.use() as loaded:
            told = answered(self._spec, loaded, rows, inputs)
        dropped = {*self._spec.columns, *(f"{view}__at" for view in self._spec.views)}
        told = told.select([name for name in told.column_names if name not in dropped])
        return told.append_column("scored_at", pa.repeat(pa.scalar(clock_us(), TIME), len(told)))

    def _inputs(self, rows: pa.Table, stop: int) -> pa.Table:
        """Model inputs from memory, of what lies too far back for that from Feast's history."""
        if self._newest is None:
            return inputs_of(self._store, self._spec, rows, AT, 0)
        self._newest.take_in(rows["offset"][0].as_py(), stop)
        moments = rows[AT].cast(pa.int64()).to_numpy()
        late = moments < self._newest.floor_us
        asked = rows.select(list(self._spec.columns)).append_column("request_at", pa.array(moments))
        near = self._newest.inputs(asked.filter(pa.array(~late)))
        if not late.any():
            return near
        far = inputs_of(self._store, self._spec, rows.filter(pa.array(late)), AT, 0)
        order = np.argsort(late, kind="stable")  # of the rows in `near`, then `far`
        return pa.concat_tables([near, far]).take(pa.array(np.argsort(order)))

    def _write(self, scored: pa.Table, stop: int) -> None:
        path = self.folder / f"{self._written:020d}-{stop:020d}.parquet"
        with disk_faults(self.folder):
            write_parquet(path, scored)
        self._parts.append(Part(self._written, stop, path))
        self._written = stop


def run(
    settings: Settings,
    spec: LineSpec,
    stop: threading.Event,
    which: Of,
    *,
    once: bool = False,
    every_s: float = 1.0,
    keep_us: int | None = None,
    most: int = MOST,
) -> int:
    """Follow the log until `stop`, a look `every_s`; with `once` until nothing is left to score.

    Returns how many rows were scored. What may pass (no champion yet, a store that is away) is told
    and tried again, but with `once` raised. Parts older than `keep_us` go (None: none). After each
    look `scores/<log>.json` in the line's home says how it stands (`pulse`).
    """
    lines = LineStore(settings.line_store_url(spec.line), spec.line)
    models = Follower(spec, lines)
    nearline = Nearline(settings, spec, which, models, most=most)
    pulse = Pulse(spec.line, settings.line_home(spec.line), which)
    models.start(prepare=lambda: None)
    told = ""
    try:
        while not stop.is_set():
            problem, behind = "", 0
            try:
                if not _await(models, lines, stop):
                    break
                behind = nearline.look()
            except EnvironmentFault as fault:
                if once:
                    raise
                problem = str(fault)
                if problem != told:
                    LOG.error("%s: %s", spec.line, problem)
            told = problem
            if keep_us is not None:
                nearline.forget(keep_us)
            pulse.tell(nearline.standing, problem, now=once and not behind)
            if once and not behind:
                break
            if not behind:
                stop.wait(every_s)
        return nearline.standing.rows
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
