"""Hot swap: follow the line's champion pointer with two models, one that serves and one that waits.

A new champion's deltas are applied to the waiting model, which is a version or more behind; it is
warmed, and then a reference flips. The model that served becomes the waiting one and catches up
the next time. A request holds a model only while it predicts, and a model is not touched before
the last such request has let go: no request ever sees half a version. A rollback to the version
that served just before costs a flip. A delta that is torn, missing or out of order is refused
before it touches the model, which is then loaded from the newest base.

What waits can stand in, where the version that serves gives no finite score, and where a champion
cannot be loaded: the version before it goes on, or at a start is loaded in its place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, Final

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import PREVIOUS
from headrace.line import Champion, Version
from headrace.model import State
from headrace.serving.loaded import Delivery, Lines, Loaded
from headrace.serving.priority import step_back
from headrace.serving.resident import Resident

LOG = logging.getLogger(__name__)
NICE: Final = 10
"""Of the thread that follows, once both models are in memory: a delta's 5 to 13 ms of work, most of
it for the interpreter, would halt the answers of that time.
"""
MOST_TRIED: Final = 5
"""So many earlier champions are tried where one has to stand in."""


class Follower:
    """A thread that keeps `current()` at the champion.

    A version that cannot be loaded leaves the current one in place; `fault` says why, and the
    load is tried again every `retry_s`. At a start the one before it is loaded meanwhile.
    `settled` is called in the thread once both models are in memory, which then stay; from there on
    the thread steps back behind those that answer.
    """

    def __init__(
        self,
        spec: LineSpec,
        lines: Lines,
        poll_s: float = 0.1,
        retry_s: float = 1.0,
        settled: Callable[[], None] | None = None,
    ) -> None:
        self._spec = spec
        self._settled = settled
        self._lines = lines
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._serving: Resident | None = None
        self._waiting: Resident | None = None
        self._current: Loaded | None = None
        self._missed: Champion | None = None
        self._falls_back = PREVIOUS in spec.serving.fallback
        self._may_go_back = False
        self._wanted = self._went_back = ""
        self._tried = False
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
        with self._lent(resident):
            yield loaded

    @contextmanager
    def use_previous(self) -> Iterator[Loaded]:
        """The same with the version that served before, where it waits in memory.

        Raises `EnvironmentFault` where none does; it is then fetched behind, for later requests.
        """
        with self._released:
            loaded, resident = self.current(), self._waiting
            may = resident is not None and resident.usable and self._may_go_back
            before = resident.version if resident is not None and may else None
            if resident is None or before is None or before.version == loaded.version.version:
                self._wanted = loaded.version.version
                raise EnvironmentFault(f"no version before {self._wanted} is in memory yet")
            loaded = Loaded(before, loaded.champion, resident.model)
            resident.users += 1
        with self._lent(resident):
            yield loaded

    @contextmanager
    def _lent(self, resident: Resident) -> Iterator[None]:
        try:
            yield
        finally:
            with self._released:
                resident.users -= 1
                if not resident.users:
                    self._released.notify_all()

    def stands_in(self, loaded: Loaded) -> bool:
        """Whether what serves does so because the champion after it cannot be loaded."""
        missed = self._missed
        return missed is not None and missed.generation != loaded.champion.generation

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
    def tried(self) -> bool:
        """Whether the first look at the pointer is over, with whatever result."""
        return self._tried

    @property
    def fault(self) -> str | None:
        """Why the champion could not be loaded at the last try, None when it could."""
        return self._fault

    @property
    def delivered(self) -> Delivery:
        """How champions came into memory since the start."""
        return self._delivery

    def delivery(self) -> dict[str, Any]:
        """Counts of how champions came into memory, the present fault, what waits, and which
        champion is missed: it cannot be loaded, so that another version stands in.
        """
        waiting = None if self._waiting is None else self._waiting.version
        return {
            **asdict(self._delivery),
            "fault": self._fault,
            "waiting": waiting and waiting.version,
            "missed": self._missed and self._missed.version,
        }

    def follow(self) -> bool:
        """Look at the pointer once; true when a new champion was swapped in."""
        champion = self._lines.champion()
        held = self._current
        if champion is None or (held and held.champion.generation == champion.generation):
            return False
        if held is not None and held.version.version == champion.version:
            self._current, self._missed = Loaded(held.version, champion, held.model), None
            self._count(swaps=1)
            return True
        try:
            self._have_wait(champion.version)
        except Exception:
            self._missed = champion
            if held is None and self._falls_back and (earlier := self._have_earlier_wait()):
                self._flip(earlier)
                LOG.error("%s: %s serves in its place", self._spec.line, earlier.version)
            raise
        self._flip(champion)
        self._missed = None
        LOG.info("%s: serving %s (%s)", self._spec.line, champion.version, champion.action)
        return True

    def _have_one_wait(self) -> None:
        """Put the second model beside the first, before the first delta asks for it."""
        if self._current is not None and self._waiting is None:
            assert self._serving is not None
            second = Resident(self._spec)
            try:
                second.load_beside(self._serving)
            except IntegrityError as problem:
                LOG.warning("%s: %s", self._spec.line, problem)
                second.load(*self._lines.load(self._current.version.version))
            self._waiting = second
            if self._settled is not None:
                self._settled()

    def _have_wait(self, version: str) -> None:
        """Bring the waiting model to a version. Raises `IntegrityError` where it cannot score."""
        if self._waiting is None:
            self._waiting = Resident(self._spec)
        self._bring(self._waiting, version)
        self._waiting.try_out()

    def _have_earlier_wait(self) -> Champion | None:
        """Bring it to the newest champion before the present one that can be had, if any can."""
        for earlier in islice(self._lines.earlier(), MOST_TRIED):
            try:
                self._have_wait(earlier.version)
            except Exception as problem:  # noqa: BLE001 - then perhaps the one before
                LOG.warning("%s: %s not loaded: %s", self._spec.line, earlier.version, problem)
            else:
                return earlier
        return None

    def _have_asked_wait(self) -> None:
        """Fetch what a request would have gone back to, once for each version that serves."""
        asked, self._wanted = self._wanted, ""
        current = self._current
        if not self._falls_back or current is None or asked in ("", self._went_back):
            return
        if asked == current.version.version and self._waiting is not None:
            self._went_back = asked
            with self._released:
                self._may_go_back = False
            found = self._have_earlier_wait() is not None
            with self._released:
                self._may_go_back = self._waiting.usable = found

    def _flip(self, champion: Champion) -> None:
        resident = self._waiting
        assert resident is not None
        assert resident.version is not None
        with self._released:
            resident.usable = True
            self._serving, self._waiting = resident, self._serving
            self._current = Loaded(resident.version, champion, resident.model)
            # what a rollback left behind is not to answer again
            self._may_go_back = champion.action != "rollback"
            self._went_back = ""
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
            self._change(resident, target)
        except Exception:
            resident.usable = resident.version is not None  # it still holds a whole one
            raise

    def _change(self, resident: Resident, target: str) -> None:
        held = resident.version
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
            resident.usable = False  # no new ones
            self._released.wait_for(lambda: not resident.users or self._stop.is_set())
            return not resident.users

    def _count(self, **more: int) -> None:
        new = {name: getattr(self._delivery, name) + count for name, count in more.items()}
        self._delivery = replace(self._delivery, **new)

    def _run(self, prepare: Callable[[], None]) -> None:
        prepared = stepped_back = False
        while not self._stop.is_set():
            wait_s = self._poll_s
            try:
                if not prepared:
                    prepare()
                    prepared = True
                self.follow()
                self._tried = True
                self._have_one_wait()
                if self._waiting is not None and not stepped_back:
                    step_back(NICE)
                    stepped_back = True
                self._have_asked_wait()
                self._fault = None
            except Exception as problem:  # noqa: BLE001 - the thread must outlive any bad version
                if str(problem) != self._fault:
                    LOG.error("%s: champion not loaded: %s", self._spec.line, problem)
                self._fault = str(problem)
                wait_s = self._retry_s
            self._tried = True
            self._stop.wait(wait_s)
