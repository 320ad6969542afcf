"""The push of a tick's feature rows to the online store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0

Push = Callable[[str, pa.Table], None]  # a view and the rows of its changed keys


def feast_push(settings: Settings, spec: LineSpec) -> Push:
    """The push to Feast's online store."""
    from headrace.store import Store

    store = Store(settings)
    return lambda view, rows: store.push(spec, view, rows)


def patient(push: Push, stop: threading.Event, failed: Callable[[], None]) -> Push:
    """A push that is tried until it succeeds: an outage of the store must not end the collector.

    `failed` is called at each failure. Once `stop` is set a failure raises `EnvironmentFault`;
    the next start pushes again.
    """

    def push_until_done(view: str, rows: pa.Table) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                push(view, rows)
                return
            except Exception as problem:
                failed()
                if stop.is_set():
                    raise EnvironmentFault(
                        f"{view}: the online store did not take the newest tick ({problem}); "
                        "see that it answers and start again: the rows will be pushed then"
                    ) from problem
                LOG.error("push of %s failed, trying again in %g s: %s", view, pause_s, problem)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    return push_until_done
