"""The resident process: looks at the line until it is told to stop, and says how it stands."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from headrace import turns
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, HeadraceError
from headrace.learner.audit import Auditor
from headrace.learner.metrics import LearnerMetrics, MetricsServer
from headrace.learner.standing import Models
from headrace.learner.steps import Learner
from headrace.line import LineStore
from headrace.sample import head_tick
from headrace.settings import Settings

LOG = logging.getLogger(__name__)

POLL_S: Final = 0.05
BEAT_S: Final = 2.0
RETRY_S: Final = 1.0
CADENCE_US: Final = 1_000_000
"""Where the line declares no `cadence.learn`."""


def run(settings: Settings, spec: LineSpec, stop: threading.Event) -> None:
    """Learn until `stop` is set; the look under way is finished first.

    Waits for the line's first champion, and goes on after errors, which `/health` tells. Raises
    `EnvironmentFault` when another learner of the line runs here or the port is taken.
    """
    home = settings.line_home(spec.line)
    with _alone(home):
        metrics = LearnerMetrics(spec)
        server = MetricsServer(metrics, settings.host, settings.learner_port)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="audit") as executor:
                Resident(settings, spec, metrics, executor).run(stop)
        finally:
            server.close()
            turns.silence(home)


class Resident:
    """A learner that is made anew after each error, from what the store holds."""

    def __init__(
        self,
        settings: Settings,
        spec: LineSpec,
        metrics: LearnerMetrics,
        executor: ThreadPoolExecutor,
    ) -> None:
        self._settings, self._spec = settings, spec
        self._metrics, self._auditor = metrics, Auditor(settings, spec, executor)
        self._home = settings.line_home(spec.line)
        self._store = LineStore(settings.line_store_url(spec.line), spec.line)
        self._learner: Learner | None = None
        self._models: Models | None = None
        self._told = ""
        self._beat_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Look every `POLL_S`, and after a chunk not before `cadence.learn` has passed."""
        cadence_s = (self._spec.cadence.learn or CADENCE_US) / 1e6
        due = time.monotonic()
        while not stop.wait(max(due - time.monotonic(), POLL_S)):
            began = time.monotonic()
            try:
                if self._look(began):
                    due = began + cadence_s
            except HeadraceError as problem:
                self._fail(problem)
                due = began + RETRY_S

    def _look(self, began: float) -> bool:
        """Whether a chunk came in."""
        if self._learner is None:
            if self._store.champion() is None:
                self._tell(f"line {self._spec.line!r} has no champion yet; run full_train once")
                return False
            self._models = self._models or Models(self._spec)
            self._learner = Learner(self._settings, self._spec, self._auditor, models=self._models)
        before = self._learner.next_tick
        ended = self._learner.look()
        behind = head_tick(self._home) - self._learner.next_tick
        self._metrics.looked(ended, time.monotonic() - began, behind)
        for step in ended:
            if step.outcome != "promoted":
                LOG.warning("%s: %s: %s", self._spec.line, step.stage, "; ".join(step.reasons))
        self._told = ""
        self._beat(began)
        return self._learner.next_tick != before

    def _beat(self, now: float) -> None:
        assert self._learner is not None
        if now < self._beat_due:
            return
        self._beat_due = now + BEAT_S
        version = self._learner.champion.version
        self._metrics.stands(version, self._store.get(version).watermark_us)
        turns.beat(
            self._home,
            {"pid": os.getpid(), "champion": version, "next_tick": self._learner.next_tick},
        )

    def _fail(self, problem: HeadraceError) -> None:
        """Nothing in memory is trusted after an error: the next look starts from the store."""
        self._learner = None
        self._metrics.failed(str(problem))
        self._tell(str(problem))

    def _tell(self, text: str) -> None:
        if text != self._told:
            LOG.error("%s: %s", self._spec.line, text)
        self._told = text


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the line's lock: two learners would work against each other."""
    folder = home / "learner"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EnvironmentFault(
                f"{folder}: another learner of this line runs; stop it first"
            ) from None
        yield
