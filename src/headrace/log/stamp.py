"""The arrival stamp: knowledge time enters the system here and nowhere else."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import TIME, event_schema
from headrace.labels.state import MARK
from headrace.log.files import FileLog
from headrace.settings import Settings


def clock_us() -> int:
    """Wall clock, microseconds since 1970 UTC."""
    return time.time_ns() // 1_000


class AppendableLog(Protocol):
    """A log as its single writer sees it: a `FileLog`, or a `KafkaLog`."""

    @property
    def head(self) -> int: ...

    @property
    def segments(self) -> int: ...

    def append(self, table: pa.Table) -> int: ...

    def read(self, start: int, stop: int) -> pa.Table: ...

    def last(self) -> pa.Table | None: ...

    def lag(self) -> int: ...

    def join(self) -> int: ...

    def close(self) -> None: ...


class EventWriter:
    """The single writer of a line's event log; safe to share between threads.

    Every append gets one `arrival_at` for all its records: the clock, or 1 us after the
    last stored stamp where the clock has not moved on (or went backwards).
    """

    def __init__(
        self,
        folder: Path,
        spec: LineSpec,
        clock: Callable[[], int] = clock_us,
        log: AppendableLog | None = None,
    ) -> None:
        self._schema = event_schema(spec)
        self._log = log or FileLog(folder, self._schema, writer=True)
        self._clock = clock
        self._guard = threading.Lock()
        self._last_us = self._newest_us()

    @property
    def head(self) -> int:
        """The offset that the next record will get."""
        return self._log.head

    @property
    def last_us(self) -> int:
        """Stamp of the newest record; -1 for an empty log."""
        return self._last_us

    def read(self, start: int, stop: int) -> pa.Table:
        """Records `[start, stop)`."""
        return self._log.read(start, stop)

    def append(self, records: pa.Table) -> int:
        """Stamp and store records of the event schema (their `arrival_at` is replaced)."""
        with self._guard:
            stamp = max(self._clock(), self._last_us + 1)
            place = self._schema.get_field_index("arrival_at")
            column = pa.array(np.full(records.num_rows, stamp, dtype=np.int64)).cast(TIME)
            first = self._stored(records.set_column(place, self._schema.field(place), column))
            self._last_us = stamp if records.num_rows else self._last_us
            return first

    def append_stamped(self, records: pa.Table) -> int:
        """Store records that bring their own stamps (an import), all of them or none.

        Raises `InputError` when the stamps fall, or do not start after the last stored one.
        """
        with self._guard:
            stamps = records["arrival_at"].cast("int64").to_numpy()
            if stamps.size and (stamps[0] <= self._last_us or np.any(np.diff(stamps) < 0)):
                raise InputError(
                    f"arrival_at: stamps must not fall and must start after {self._last_us} us; "
                    "sort the events by arrival, or import them into an empty home"
                )
            first = self._stored(records)
            self._last_us = int(stamps[-1]) if stamps.size else self._last_us
            return first

    def _stored(self, records: pa.Table) -> int:
        try:
            return self._log.append(records)
        except Exception:
            # a log elsewhere may have found out that an earlier append was stored after all
            self._last_us = max(self._last_us, self._newest_us())
            raise

    def _newest_us(self) -> int:
        newest = self._log.last()
        return -1 if newest is None else last_arrival_us(newest)

    def mark(self) -> int:
        """Append one mark: it says only that time has passed, so that an idle tick has a time."""
        row: dict[str, object] = dict.fromkeys(self._schema.names)
        now = self._clock()
        row |= {"event": MARK, "impression_id": "", "event_at": now, "arrival_at": now, "value": 0}
        return self.append(pa.Table.from_pylist([row], schema=self._schema))

    def join(self) -> int:
        """Join small segments where enough have gathered; returns how many were replaced."""
        with self._guard:
            return self._log.join()

    def lag(self) -> int:
        """How many messages the log's copy here lacks; 0 for a log in files."""
        return self._log.lag()

    @property
    def segments(self) -> int:
        """How many files hold the log."""
        return self._log.segments

    def close(self) -> None:
        """Give the writer's lock back."""
        self._log.close()


def event_writer(
    settings: Settings, spec: LineSpec, clock: Callable[[], int] = clock_us
) -> EventWriter:
    """The writer of a line's event log, in its home or in Kafka, as the settings say."""
    folder, place = settings.line_home(spec.line) / "log" / "events", settings.event_log
    if place is None:
        return EventWriter(folder, spec, clock)
    from headrace.log.kafka import KafkaLog

    topic = place.topic(spec.line)
    security = settings.kafka_security
    log = KafkaLog(folder, event_schema(spec), place.brokers, topic, writer=True, security=security)
    return EventWriter(folder, spec, clock, log)


def last_arrival_us(events: pa.Table) -> int:
    """Stamp of the newest of these records (they are in arrival order)."""
    return int(pc.max(events["arrival_at"].cast("int64")).as_py())


def offset_at(log: FileLog, at_us: int) -> int:
    """The offset of the first record with a stamp of `at_us` or later; the head without one."""
    return bisect_left(
        range(log.head), at_us, key=lambda offset: last_arrival_us(log.read(offset, offset + 1))
    )
