"""The online store as ingest sees it: rows pushed tick by tick, at a start what it lacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import pyarrow as pa

from headrace import parts
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.ingest.tick import Push, TickState
from headrace.sample import read_tick
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
PARTS_AT_ONCE: Final = 20  # of 10 k events each, they fill a pipeline of some 100 MB
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 2.0


class Online(Protocol):
    """Holds the newest row of each key of each view, and a mark: the time of its newest row."""

    def push(self, view: str, rows: pa.Table) -> None: ...

    def mark_us(self, view: str) -> int | None: ...

    def clear(self, view: str) -> None: ...


class FeastOnline:
    """Feast's online store, for one line."""

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        from headrace.store import Store

        self._spec = spec
        self._store = Store(settings)

    def push(self, view: str, rows: pa.Table) -> None:
        """Write a tick's rows; raises `EnvironmentFault` when the store is away or lost rows."""
        self._store.push(self._spec, view, rows)

    def mark_us(self, view: str) -> int | None:
        """Time of the newest row pushed."""
        return self._store.mark_us(view)

    def clear(self, view: str) -> None:
        """Delete the view's rows."""
        self._store.clear(view)


def catch_up(state: TickState, online: Online, parts_at_once: int = PARTS_AT_ONCE) -> None:
    """Push what committed ticks wrote and the online store does not hold.

    A kill between commit and push leaves a tick behind; a Redis that restarts without its newest
    seconds, or without anything, or another one than before, lacks more. A store whose mark is
    no tick's time holds the rows of another past: it is cleared and filled.
    """
    for view in state.spec.views:
        mark_us = online.mark_us(view)
        lacking = _parts_after(state, view, mark_us)
        if lacking is None:
            online.clear(view)
            lacking = _parts_after(state, view, None) or []
        for start in range(0, len(lacking), parts_at_once):
            paths = [state.home / path for path in lacking[start : start + parts_at_once]]
            tables = [parts.read(path) for path in paths]
            online.push(view, _newest_of_keys(state.spec, view, pa.concat_tables(tables)))


def patient(
    online: Online, state: TickState, stop: threading.Event, failed: Callable[[], None]
) -> Push:
    """A push that is tried until it succeeds: an outage of the store must not end the collector.

    A second try catches up, because a store that comes back may have lost more than this tick.
    `failed` is called at each failure. Once `stop` is set a failure raises `EnvironmentFault`;
    the next start pushes again.
    """

    def push_until_done(view: str, rows: pa.Table) -> None:
        attempt: Callable[[], None] = partial(online.push, view, rows)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                attempt()
                return
            except Exception as problem:
                failed()
                if stop.is_set():
                    raise EnvironmentFault(
                        f"{view}: the online store did not take the newest tick ({problem}); "
                        "see that it answers and start again: the rows will be pushed then"
                    ) from problem
                LOG.error("push of %s failed, trying again in %g s: %s", view, pause_s, problem)
            attempt = partial(catch_up, state, online)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    return push_until_done


def _parts_after(state: TickState, view: str, mark_us: int | None) -> list[str] | None:
    """Paths of the view's parts after the tick of that time, oldest first; None: no such tick."""
    found: list[str] = []
    for tick in reversed(range(state.next_tick)):
        manifest = read_tick(state.home, tick)
        if view not in manifest.features:
            continue
        if mark_us is not None and manifest.at_us <= mark_us:
            return found[::-1] if manifest.at_us == mark_us else None
        found.append(manifest.features[view])
    return found[::-1] if mark_us is None else None


def _newest_of_keys(spec: LineSpec, view: str, rows: pa.Table) -> pa.Table:
    numbered = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    last = numbered.group_by(list(spec.views[view][0].key)).aggregate([("row", "max")])
    return rows.take(last["row_max"].sort())
