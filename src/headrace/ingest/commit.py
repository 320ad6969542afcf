"""Group commit: events of all requests that come within 100 ms share one append."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol

import pyarrow as pa

from headrace.ingest.metrics import IngestMetrics

LOG = logging.getLogger(__name__)
COMMIT_S: Final = 0.1

Row = dict[str, Any]
Waiting = tuple[list[Row], Future[int]]


class AppendOnly(Protocol):
    """What is written to: an `EventWriter`."""

    def append(self, records: pa.Table) -> int: ...

    def join(self) -> int: ...


class Committer:
    """One thread that appends what has gathered, at most every 100 ms.

    How much may gather is the caller's to bound (`limits.Admission`).
    """

    def __init__(self, writer: AppendOnly, schema: pa.Schema, metrics: IngestMetrics) -> None:
        self._writer = writer
        self._schema = schema
        self._metrics = metrics
        self._waiting: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def put(self, rows: list[Row]) -> Future[int]:
        """The offset of the first of these rows, once all of them are durable."""
        done: Future[int] = Future()
        self._waiting.put((rows, done))
        return done

    def stop(self) -> None:
        """Commit everything accepted, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = [self._waiting.get()]
            if batch[0] is not None:
                time.sleep(COMMIT_S)
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            open_ = None not in batch
            self._commit([item for item in batch if item is not None])

    def _commit(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        for _, done in batch:
            done.set_running_or_notify_cancel()  # a sender that left cannot cancel it any more
        rows = [row for part, _ in batch for row in part]
        try:
            with self._metrics.append_seconds.time():
                first = self._writer.append(pa.Table.from_pylist(rows, schema=self._schema))
        except Exception as problem:  # noqa: BLE001 (whatever it is, every sender must hear of it)
            LOG.error("event log: append failed: %s", problem)
            for _, done in batch:
                if not done.cancelled():
                    done.set_exception(problem)
            return
        for part, done in batch:
            if not done.cancelled():
                done.set_result(first)
            first += len(part)
        try:
            self._writer.join()
        except OSError as problem:  # nothing is lost, there are only more files
            LOG.error("event log: segments not joined: %s", problem)
