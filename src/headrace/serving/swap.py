"""Hot swap: follow the line's champion pointer, build and warm the next model, flip a reference.

A request takes the reference once and keeps that model to its end, so a swap never touches a
request in flight: the old model is dropped when its last request lets go of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import input_fields
from headrace.line import Champion, LineStore, Version
from headrace.model import Model

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model in memory with the version and the pointer move that brought it."""

    version: Version
    champion: Champion
    model: Model


class Follower:
    """A thread that keeps `current()` at the champion.

    A version that cannot be loaded leaves the current one in place; `fault` says why, and the
    load is tried again every `retry_s`.
    """

    def __init__(
        self,
        spec: LineSpec,
        lines: LineStore,
        poll_s: float = 0.1,
        retry_s: float = 1.0,
    ) -> None:
        self._spec = spec
        self._lines = lines
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._current: Loaded | None = None
        self._fault: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, prepare: Callable[[], None]) -> None:
        """Start the thread, which calls `prepare` before it looks for a champion."""
        self._thread = threading.Thread(target=self._run, args=(prepare,), name="swap", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a load in progress is finished first."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def current(self) -> Loaded:
        """The model to score with. Raises `EnvironmentFault` while there is none."""
        loaded = self._current
        if loaded is None:
            reason = self._fault or f"line {self._spec.line!r} has no champion loaded yet"
            raise EnvironmentFault(f"not ready: {reason}; bootstrap the line or retry shortly")
        return loaded

    @property
    def ready(self) -> bool:
        return self._current is not None

    @property
    def fault(self) -> str | None:
        """Why the champion could not be loaded at the last try, None when it could."""
        return self._fault

    def follow(self) -> bool:
        """Look at the pointer once; true when a new champion was swapped in."""
        champion = self._lines.champion()
        held = self._current
        if champion is None or (held and held.champion.generation == champion.generation):
            return False
        if held is not None and held.version.version == champion.version:
            self._current = Loaded(held.version, champion, held.model)
            return True
        version, state = self._lines.load(champion.version)
        model = Model(self._spec.model, self._spec.seed)
        model.load_state(state)
        model.predict(_blank_inputs(self._spec))  # traces the graph and touches its memory
        self._current = Loaded(version, champion, model)
        LOG.info("%s: serving %s (%s)", self._spec.line, version.version, champion.action)
        return True

    def _run(self, prepare: Callable[[], None]) -> None:
        prepared = False
        while not self._stop.is_set():
            wait_s = self._poll_s
            try:
                if not prepared:
                    prepare()
                    prepared = True
                self.follow()
                self._fault = None
            except Exception as problem:  # noqa: BLE001 - the thread must outlive any bad version
                if str(problem) != self._fault:
                    LOG.error("%s: champion not loaded: %s", self._spec.line, problem)
                self._fault = str(problem)
                wait_s = self._retry_s
            self._stop.wait(wait_s)


def _blank_inputs(spec: LineSpec) -> pa.Table:
    schema = pa.schema(input_fields(spec))
    return pa.table([pa.array([0]).cast(field.type) for field in schema], schema=schema)
