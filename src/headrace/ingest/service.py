"""The resident process: events in, features and samples out, tick by tick."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

from headrace.atomic import disk_faults
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import served_schema
from headrace.ingest.history import import_history
from headrace.ingest.limits import Admission, Limits, free_bytes, low_disk
from headrace.ingest.metrics import IngestMetrics
from headrace.ingest.online import FeastOnline, Online, catch_up, patient
from headrace.ingest.plan import Logs
from headrace.ingest.tick import Push, TickState, advance, resume, run_tick
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter, clock_us, event_writer
from headrace.sample import check_ticks
from headrace.settings import Settings

__all__ = [
    "TickState",
    "advance",
    "import_history",
    "resume",
    "run",
    "run_tick",
]

CATCH_UP_S: Final = 3.0  # after a stop; what is left then waits in the log for the next start


def run(
    settings: Settings,
    spec: LineSpec,
    stop: threading.Event,
    online: Online | None = None,
    limits: Limits | None = None,
) -> None:
    """Collect events over HTTP and run a tick each `cadence.tick` until `stop` is set.

    Finishes what was cut short before, pushes what the online store lacks, then goes on. On `stop`
    new requests are refused, accepted events are stored and answered, and last ticks read them,
    of which none begins more than `CATCH_UP_S` after that: 9 s at most, and the tick under way.
    Raises `EnvironmentFault` when the port or the log is taken, the disk has too little room, or
    the online store is away at the start; nothing is lost by it. `online` defaults to Feast's.
    """
    online = online or FeastOnline(settings, spec)
    home = settings.line_home(spec.line)
    home.mkdir(parents=True, exist_ok=True)
    free = free_bytes(home)
    if free < settings.min_free_bytes:
        raise EnvironmentFault(low_disk(home, free, settings.min_free_bytes))
    with disk_faults(home):
        Resident(settings, spec, home, online, limits or Limits()).run(stop)


class Resident:
    """The ticks of one line beside its collector."""

    def __init__(
        self, settings: Settings, spec: LineSpec, home: Path, online: Online, limits: Limits
    ) -> None:
        self._settings, self._spec, self._home, self._limits = settings, spec, home, limits
        self._metrics = IngestMetrics(spec)
        self._online = self._metrics.counted(online)

    def run(self, stop: threading.Event) -> None:
        """Everything from the lock of the log to the last tick."""
        writer = event_writer(self._settings, self._spec)
        try:
            check_ticks(self._home)
            served = FileLog(self._home / "log" / "served", served_schema(self._spec))
            state = resume(self._spec, self._home, Logs(writer, served))
            self._metrics.moved_to(state.at_us)
            catch_up(state, self._online)
            push = patient(self._online, state, stop, self._metrics.push_failures.inc)
            self._collect(state, writer, stop, push)
            deadline = time.monotonic() + CATCH_UP_S
            while time.monotonic() < deadline and self._tick(state, push):
                pass
        finally:
            writer.close()

    def _collect(
        self, state: TickState, writer: EventWriter, stop: threading.Event, push: Push
    ) -> None:
        from headrace.ingest.collector import Collector

        admission = Admission(
            self._limits,
            self._home,
            self._settings.min_free_bytes,
            lambda: writer.head - state.events_to,
        )
        collector = Collector(self._settings, self._spec, writer, admission, self._metrics)
        collector.start()
        try:
            cadence_s = self._spec.cadence.tick / 1e6
            due = time.monotonic()
            while not stop.wait(max(due - time.monotonic(), 0.0)):
                due = max(due + cadence_s, time.monotonic())
                collector.check()
                if not self._tick(state, push) and slides(state, clock_us()):
                    writer.mark()
                    self._tick(state, push)
                if admission.behind() >= self._limits.tick_events:
                    due = time.monotonic()
        finally:
            collector.stop()

    def _tick(self, state: TickState, push: Push) -> bool:
        manifest = advance(state, push, most=self._limits.tick_events)
        if manifest is not None:
            self._metrics.tick(manifest, state.spent_s)
        return manifest is not None


def slides(state: TickState, now_us: int) -> bool:
    """Whether a tick without news would say something new: a window or a wait has run out."""
    return state.labels.due(now_us) or any(
        state.windows.changed(view, state.at_us, now_us).num_rows for view in state.spec.views
    )
