"""What the collector takes in at once, and why it says no: memory and disk are bounded here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.ingest.plan import TICK_EVENTS


@dataclass(frozen=True)
class Limits:
    """Bounds of the ingest process (docs/adr/0016); the defaults hold some 150 MB.

    `connections`: open at once, idle ones included; the server answers more with a bare 503.
    `body_bytes`, `body_events`, `body_s`: one request, and how long its body may take to come.
    `queue_bytes`: bodies being received or waiting for their append, all requests together;
    `queue_rows`: events waiting for their append. `tick_events`: what one tick reads (a single
    append is never cut). `behind_events`: events in the log that no tick has read yet.
    """

    connections: int = 512
    body_bytes: int = 4 * 2**20
    body_events: int = 10_000
    body_s: float = 4.0
    queue_bytes: int = 32 * 2**20
    queue_rows: int = 50_000
    tick_events: int = TICK_EVENTS
    behind_events: int = 1_000_000


class Refusal(Exception):
    """A request that is not taken; nothing of it was kept, so it can be sent again as it is.

    `reason` is one of `REASONS`; `retry_after_s` is None where sending it again is of no use.
    """

    def __init__(
        self, status: int, reason: str, detail: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail
        self.retry_after_s = retry_after_s


REASONS = (
    *("body_too_large", "too_many_events", "body_too_slow", "sender_left"),
    *("unknown", "queue_full", "behind", "disk_low", "stopping", "not_stored"),
)


@dataclass
class Held:
    """What one request holds of the bounds."""

    bytes: int = 0
    rows: int = 0


class Admission:
    """Counts what is held against the limits. Used by the server's event loop alone: no lock.

    `behind` says how many events of the log wait for a tick.
    """

    def __init__(
        self, limits: Limits, folder: Path, min_free_bytes: int, behind: Callable[[], int]
    ) -> None:
        self.limits = limits
        self.stopping = False
        self.bytes = 0
        self.rows = 0
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self.behind = behind

    @contextmanager
    def request(self) -> Iterator[Held]:
        """Let one request in and give back what it held at its end. Raises `Refusal`."""
        self._check()
        held = Held()
        try:
            yield held
        finally:
            self.bytes -= held.bytes
            self.rows -= held.rows

    def hold_bytes(self, held: Held, count: int) -> None:
        """Take room for bytes of the body. Raises `Refusal` when the body or all are too many."""
        if held.bytes + count > self.limits.body_bytes:
            why = f"the body is too large; send at most {self.limits.body_bytes} bytes"
            raise Refusal(413, "body_too_large", why)
        if self.bytes + count > self.limits.queue_bytes:
            raise _queue_full(f"{self.bytes} bytes", self.limits.queue_bytes)
        held.bytes += count
        self.bytes += count

    def hold_rows(self, held: Held, count: int) -> None:
        """Take room for events that wait for their append. Raises `Refusal` without room."""
        if self.rows + count > self.limits.queue_rows:
            raise _queue_full(f"{self.rows} events", self.limits.queue_rows)
        held.rows += count
        self.rows += count

    def _check(self) -> None:
        if self.stopping:
            raise Refusal(503, "stopping", "the collector is stopping; send again later", 5)
        behind = self.behind()
        if behind > self.limits.behind_events:
            raise Refusal(
                429,
                "behind",
                f"{behind} stored events wait for a tick, of at most {self.limits.behind_events}; "
                "send again later",
                2,
            )
        free = free_bytes(self._folder)
        if free < self._min_free_bytes:
            raise Refusal(503, "disk_low", low_disk(self._folder, free, self._min_free_bytes), 30)


def _queue_full(waiting: str, most: int) -> Refusal:
    why = f"{waiting} wait already, of at most {most}; send again later"
    return Refusal(429, "queue_full", why, 1)


def free_bytes(folder: Path) -> int:
    """Free space on the folder's disk."""
    return shutil.disk_usage(folder).free


def low_disk(folder: Path, free: int, wanted: int) -> str:
    """What is wrong with the disk, and the remedy."""
    return (
        f"{folder}: {free // 2**20} MiB are free, of at least {wanted // 2**20}; make room on "
        "the disk, or lower HEADRACE_MIN_FREE_MB"
    )
