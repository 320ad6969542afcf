"""The features of a request, or at once that they are missing: a circuit breaker before the store.

A read that fails or takes longer than `serving.read_timeout` opens it: from then on no request
waits for the store, while a thread asks it again and again, and closes the breaker when it
answers. So an outage costs the requests that were under way one time-out and later ones nothing.
A store that comes back without what it held is missing too: its marks (docs/adr/0014) lie behind
those that were seen before, until ingest has pushed its rows again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.raw import Candidates
from headrace.requests import Columns, Computation
from headrace.store import Store
from headrace.store.latest import Found, columns_of, found_none, nothing

LOG = logging.getLogger(__name__)
LOST_US: Final = 60_000_000
"""A mark so far behind means that rows are gone; less are the seconds that Redis may forget."""


@dataclass(frozen=True)
class FeatureRows:
    """Rows of the line's views. `newest_us`: knowledge time of the newest one that the online store
    was seen to hold at a read, which those in memory are as new as (None: no read, or no row).
    `read` and `from_memory` count since the start; zeros where no row is held in memory (SQLite).
    """

    newest_us: int | None
    read: int
    from_memory: int
    in_memory: int


class Features:
    """Reads a line's features online. Threads may share it."""

    def __init__(self, spec: LineSpec, store: Store, retry_s: float = 0.25) -> None:
        self._spec = spec
        self._store = store
        self._retry_s = retry_s
        self._turn = threading.Lock()
        self._fault: str | None = None
        self._outages = 0
        self._marks: dict[str, int] = {}
        self._failed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._recover, name="features", daemon=True)

    def start(self) -> None:
        """Start the thread that asks a store again which failed."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a read under way is waited for."""
        self._stopping.set()
        self._failed.set()
        self._thread.join()

    @property
    def fault(self) -> str | None:
        """Why features are missing, None while they are read."""
        return self._fault

    @property
    def outages(self) -> int:
        """How often they began to be missing, since the start."""
        return self._outages

    def seen(self) -> FeatureRows:
        """What was read since the start, and what is in memory."""
        held = self._store.holdings().values()
        return FeatureRows(
            newest_us=max(list(self._marks.values()), default=0) or None,
            read=sum(each.misses for each in held),
            from_memory=sum(each.hits for each in held),
            in_memory=sum(each.rows for each in held),
        )

    def warm(self) -> None:
        """Import Feast, open its store and read one absent key, before the first request.

        Raises `EnvironmentFault` where that fails; it is tried again behind.
        """
        self.read(_blank(self._spec))

    def read(self, asked: Candidates) -> Columns:
        """What `Store.read_online` gives, as arrays (`latest.columns_of`).

        Raises `EnvironmentFault`, at once, while the store is known to be away.
        """
        if self._fault is not None:
            self._refuse()
        with self._turn:  # the store takes one at a time; who waited here must not wait there too
            if self._fault is not None:
                self._refuse()
            work = Computation(self._spec, asked)
            try:
                found = self._look_up(asked, work.go_ahead)
            except InputError:
                raise
            except Exception as problem:  # whatever it was, the next request must not wait for it
                self._open(problem)
                raise EnvironmentFault(str(problem)) from problem
        return columns_of(self._spec, asked, found, work)

    def defaults(self, asked: Candidates) -> Columns:
        """The same columns as if no key had ever been seen; request-time features are computed."""
        return columns_of(self._spec, asked, found_none(self._spec, asked.num_rows))

    def _refuse(self) -> NoReturn:
        raise EnvironmentFault(f"{self._fault} (asked again every {self._retry_s:g} s)")

    def _look_up(self, asked: Candidates, meanwhile: Callable[[], None] = nothing) -> Found:
        found = self._store.look_up(self._spec, asked, meanwhile)
        for view, mark in found.marks.items():
            known = self._marks.get(view, 0)
            if known and (mark or 0) < known - LOST_US:
                raise EnvironmentFault(
                    f"online store: {view} held rows until {known} us and is marked {mark} now; "
                    "it lost rows, which `headrace ingest` pushes again"
                )
        for view, mark in found.marks.items():
            self._marks[view] = max(self._marks.get(view, 0), mark or 0)
        return found

    def _open(self, problem: Exception) -> None:
        LOG.error("%s: features are missing: %s", self._spec.line, problem)
        self._fault = str(problem) or type(problem).__name__
        self._outages += 1
        self._failed.set()

    def _recover(self) -> None:
        while True:
            self._failed.wait()
            if self._stopping.is_set():
                return
            self._failed.clear()
            began = time.monotonic()
            while self._fault is not None and not self._stopping.is_set():
                try:
                    self._look_up(_blank(self._spec))
                except Exception as problem:  # noqa: BLE001 - it is told, and asked again
                    self._fault = str(problem) or type(problem).__name__
                    self._stopping.wait(self._retry_s)
                else:
                    self._fault = None
                    away_s = time.monotonic() - began
                    LOG.warning("%s: features are back after %.1f s", self._spec.line, away_s)


def _blank(spec: LineSpec) -> Candidates:
    """A request of nobody."""
    return Candidates({name: [None] for name in spec.columns}, 1).at(time.time_ns() // 1_000)
