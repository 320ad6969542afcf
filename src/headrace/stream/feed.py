"""Numbered batches into the log, each exactly once, and a tick after each.

Spark gives a batch again, with its number and its rows, when the driver died before Spark noted
its end. `stream/batch.json` remembers the newest batch: written before its append with the log's
head and the length of `malformed.jsonl`, and again as done. At a start the head says whether the
append of a batch under way took place (a segment appears whole, and nobody else writes the log);
if not, what it left in `malformed.jsonl` is taken back and Spark gives it again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import InputError, IntegrityError
from headrace.events import event_schema, served_schema
from headrace.ingest.intake import Intake
from headrace.ingest.malformed import SideLog
from headrace.ingest.online import Online, catch_up
from headrace.ingest.plan import Logs
from headrace.ingest.service import slides
from headrace.ingest.tick import advance, resume
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter, clock_us

LOG = logging.getLogger(__name__)


class Closed(Exception):
    """The feed takes no more: the process is about to end."""


@dataclass(frozen=True)
class Delivery:
    """The newest batch: of which source and query, done, or under way since `head`."""

    source: str
    query: str
    batch: int
    done: bool
    head: int  # of the event log, before the append
    malformed_bytes: int  # of malformed.jsonl, likewise


class Feed:
    """The single writer of a line's event log while a stream feeds it.

    Opening it finishes what was cut short and pushes what the online store lacks. Raises
    `EnvironmentFault` when another process writes the log, `InputError` when another source fed
    the line. Its methods may be called from several threads.
    """

    def __init__(
        self,
        spec: LineSpec,
        home: Path,
        source: str,
        online: Online,
        clock: Callable[[], int] = clock_us,
        *,
        writer: EventWriter | None = None,
    ) -> None:
        self._source, self._online, self._clock = source, online, clock
        self._path = home / "stream" / "batch.json"
        self._schema = event_schema(spec)
        self._intake = Intake(spec)
        self._guard = threading.Lock()
        self._closed = False
        self._writer = writer or EventWriter(home / "log" / "events", spec, clock)
        try:
            self._side = SideLog(home / "malformed.jsonl")
            self._newest = self._settle()
            served = FileLog(home / "log" / "served", served_schema(spec))
            self._state = resume(spec, home, Logs(self._writer, served))
            catch_up(self._state, online)
            self._tick()
        except BaseException:
            self._writer.close()
            raise

    def deliver(self, query: str, batch: int, values: Iterable[str | bytes | None]) -> None:
        """Append the events of a batch and run a tick, unless this was done before.

        `query` is Spark's id of the stream, kept in its checkpoint. Raises `IntegrityError` when
        the batch cannot follow the newest one, `Closed` after `close`.
        """
        with self._guard:
            if self._closed:
                raise Closed(f"batch {batch} was not taken")
            try:
                if self._is_next(query, batch):
                    self._append(query, batch, values)
                self._tick()
            except BaseException:
                self._closed = True  # a mark now would look like the append of this batch
                raise

    def idle(self) -> None:
        """Run a tick without news where a window or a wait has run out; not during a batch."""
        if self._guard.acquire(blocking=False):
            try:
                if not self._closed and slides(self._state, self._clock()):
                    self._writer.mark()
                    self._tick()
            finally:
                self._guard.release()

    def close(self) -> None:
        """Wait for the batch at work, then take no more and let go of the log."""
        with self._guard:
            self._closed = True
            self._side.close()
            self._writer.close()

    def _settle(self) -> Delivery | None:
        """The newest batch that is in the log; one whose append did not happen is undone."""
        if not self._path.is_file():
            return None
        newest = Delivery(**json.loads(self._path.read_text(encoding="utf-8")))
        if newest.source != self._source:
            raise InputError(
                f"--from {self._source}: this line was fed from {newest.source}; go on with that, "
                f"or remove {self._path.parent} once all of it has been read"
            )
        if newest.done:
            return newest
        if self._writer.head == newest.head:
            self._side.rewind(newest.malformed_bytes)
            newest = replace(newest, batch=newest.batch - 1)
        return self._note(replace(newest, done=True))

    def _is_next(self, query: str, batch: int) -> bool:
        newest = self._newest
        if newest is not None and query == newest.query and batch <= newest.batch:
            return False
        known = -1 if newest is None else newest.batch
        if batch != known + 1 or (newest is not None and query != newest.query):
            raise IntegrityError(
                f"{self._path}: knows batch {known} of query {newest and newest.query}, Spark gives"
                f" batch {batch} of {query}; restore {self._path.parent} whole. Without it the "
                "source is read from its beginning, and its events enter the log again"
            )
        return True

    def _append(self, query: str, batch: int, values: Iterable[str | bytes | None]) -> None:
        now_us = self._clock()
        rows, refused = self._intake.read_each(values, now_us)
        under_way = Delivery(self._source, query, batch, False, self._writer.head, self._side.size)
        self._note(under_way)
        if refused:
            self._side.add(refused, now_us)
        if rows:
            self._writer.append(pa.Table.from_pylist(rows, schema=self._schema))
            self._writer.join()
        self._newest = self._note(replace(under_way, done=True))
        LOG.info(
            "batch %d: %d events, %d malformed, log head %d",
            batch, len(rows), len(refused), self._writer.head,
        )  # fmt: skip

    def _note(self, delivery: Delivery) -> Delivery:
        write_json(self._path, asdict(delivery))
        return delivery

    def _tick(self) -> None:
        while advance(self._state, self._online.push) is not None:
            pass
