"""What Airflow's triggerer watches of a line: the samples that wait to be learned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from headrace.settings import find_line, load_settings

POLL_S: Final = 1.0


class SamplesWait(BaseEventTrigger):  # type: ignore[misc]
    """Fires while at least `enough` samples of the line wait, and again after each cadence.

    Told once, an event that comes while a run is under way can be lost (apache/airflow#56050); a
    level that is still there is told again. What a run learns follows from offsets, not from this.
    """

    def __init__(self, line: str, enough: int) -> None:
        super().__init__()
        self.line, self.enough = line, enough

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the database keeps of it."""
        kept = {"line": self.line, "enough": self.enough}
        return f"{type(self).__module__}.{type(self).__name__}", kept

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look each second, in a thread: the files may lie on a slow disk."""
        from headrace.arrivals import Arrivals
        from headrace.errors import HeadraceError

        settings = load_settings()
        spec = find_line(settings, self.line)
        arrivals, told_s = Arrivals(settings, spec), float("-inf")
        again_s = spec.cadence.incremental / 1e6
        while True:
            try:
                waiting = await asyncio.to_thread(arrivals.waiting)
            except HeadraceError as problem:  # the schedule goes on by time, and its run says it
                self.log.error("%s: samples not counted: %s", self.line, problem)
                waiting = 0
            if waiting < self.enough:
                told_s = float("-inf")
            elif time.monotonic() - told_s >= again_s:
                told_s = time.monotonic()
                yield TriggerEvent({"line": self.line, "samples": waiting})
            await asyncio.sleep(POLL_S)
