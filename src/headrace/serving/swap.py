"""Hot swap: follow the line's champion pointer with two models, one that serves and one that waits.

A new champion's deltas are applied to the waiting model, which is a version or more behind; it is
warmed, and then a reference flips. The model that served becomes the waiting one and catches up
the next time. A request holds a model only while it predicts, and a model is not touched before
the last such request has let go: no request ever sees half a version. A rollback to the version
that served just before costs a flip. A delta that is torn, missing or out of order is refused
before it touches the model, which is then loaded from the newest base.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import input_fields
from headrace.line import Champion, Version
from headrace.model import Model, State
from headrace.serving.resident import Resident

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model in memory with the version and the pointer move that brought it."""

    version: Version
    champion: Champion
    model: Model


@dataclass(frozen=True)
class Delivery:
    """How champions came into memory since the start.

    `swaps`: how often what serves changed. `deltas` applied, `bases` loaded, `from_memory`: the
    waiting model held the champion already; `refused` deltas, the reason of the newest in
    `last_refused`.
    """

    swaps: int = 0
    deltas: int = 0
    bases: int = 0
    from_memory: int = 0
    refused: int = 0
    last_refused: str | None = None


class Lines(Protocol):
    """What a follower asks of a line: where it stands, and how to get there (`LineStore`)."""

    def champion(self) -> Champion | None: ...

    def load(self, version: str) -> tuple[Version, State]: ...

    def path(self, since: str, to: str) -> list[Version] | None: ...

    def delta(self, version: Version) -> State: ...


class Follower:
    """A thread that keeps `current()` at the champion.

    A version that cannot be loaded leaves the current one in place; `fault` says why, and the
    load is tried again every `retry_s`.
    """

    def __init__(
        self,
        spec: LineSpec,
        lines: Lines,
        poll_s: float = 0.1,
        retry_s: float = 1.0,
    ) -> None:
        self._spec = spec
        self._lines = lines
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._serving: Resident | None = None
        self._waiting: Resident | None = None
        self._current: Loaded | None = None
        self._fault: str | None = None
        self._delivery = Delivery()
        self._newest_delta: tuple[str, State] | None = None
        self._released = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, prepare: Callable[[], None]) -> None:
        """Start the thread, which calls `prepare` before it looks for a champion."""
        self._thread = threading.Thread(target=self._run, args=(prepare,), name="swap", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a load in progress is finished first."""
        self._stop.set()
        with self._released:
            self._released.notify_all()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def use(self) -> Iterator[Loaded]:
        """The model to score with, unchanged until the block ends: keep it short.

        Raises `EnvironmentFault` while there is none.
        """
        with self._released:
            loaded, resident = self.current(), self._serving
            assert resident is not None
            resident.users += 1
        try:
            yield loaded
        finally:
            with self._released:
                resident.users -= 1
                if not resident.users:
                    self._released.notify_all()

    def current(self) -> Loaded:
        """What serves now; to predict with it, `use` it. Raises `EnvironmentFault` before that."""
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

    @property
    def delivered(self) -> Delivery:
        """How champions came into memory since the start."""
        return self._delivery

    def delivery(self) -> dict[str, Any]:
        """Counts of how champions came into memory, the present fault, and what waits."""
        waiting = None if self._waiting is None else self._waiting.version
        return {
            **asdict(self._delivery),
            "fault": self._fault,
            "waiting": waiting and waiting.version,
        }

    def follow(self) -> bool:
        """Look at the pointer once; true when a new champion was swapped in."""
        champion = self._lines.champion()
        held = self._current
        if champion is None or (held and held.champion.generation == champion.generation):
            return False
        if held is not None and held.version.version == champion.version:
            self._current = Loaded(held.version, champion, held.model)
            self._count(swaps=1)
            return True
        if self._waiting is None:
            self._waiting = Resident(self._spec)
        self._bring(self._waiting, champion.version)
        self._waiting.model.predict(_blank_inputs(self._spec))  # traces, and touches its memory
        self._flip(champion)
        LOG.info("%s: serving %s (%s)", self._spec.line, champion.version, champion.action)
        return True

    def _have_one_wait(self) -> None:
        """Put the second model beside the first, before the first delta asks for it."""
        if self._current is not None and self._waiting is None:
            second = Resident(self._spec)
            second.load(*self._lines.load(self._current.version.version))
            self._waiting = second

    def _flip(self, champion: Champion) -> None:
        resident = self._waiting
        assert resident is not None
        assert resident.version is not None
        with self._released:
            self._serving, self._waiting = resident, self._serving
            self._current = Loaded(resident.version, champion, resident.model)
        self._count(swaps=1)

    def _bring(self, resident: Resident, target: str) -> None:
        """Take a model that does not serve to a version: by nothing, by deltas or from a base."""
        held = resident.version
        if held is not None and held.version == target:
            self._count(from_memory=1)
            return
        if not self._unused(resident):
            raise EnvironmentFault("the server is stopping; ask another one")
        try:
            path = None if held is None else self._lines.path(held.version, target)
            for version in path or ():
                resident.advance(version, self._delta(version))
                self._count(deltas=1)
            if path is not None:
                return
        except IntegrityError as problem:
            if str(problem) != self._delivery.last_refused:
                LOG.warning("%s: delta refused: %s", self._spec.line, problem)
                self._count(refused=1)
                self._delivery = replace(self._delivery, last_refused=str(problem))
        resident.load(*self._lines.load(target))
        self._count(bases=1)

    def _delta(self, version: Version) -> State:
        """A delta from the store; the newest one is kept, the other model asks for it next."""
        if self._newest_delta is None or self._newest_delta[0] != version.version:
            self._newest_delta = (version.version, self._lines.delta(version))
        return self._newest_delta[1]

    def _unused(self, resident: Resident) -> bool:
        """Wait until no request predicts with a model; false when the server stops first."""
        with self._released:
            self._released.wait_for(lambda: not resident.users or self._stop.is_set())
            return not resident.users

    def _count(self, **more: int) -> None:
        new = {name: getattr(self._delivery, name) + count for name, count in more.items()}
        self._delivery = replace(self._delivery, **new)

    def _run(self, prepare: Callable[[], None]) -> None:
        prepared = False
        while not self._stop.is_set():
            wait_s = self._poll_s
            try:
                if not prepared:
                    prepare()
                    prepared = True
                self.follow()
                self._have_one_wait()
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
