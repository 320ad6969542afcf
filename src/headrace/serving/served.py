"""The served log's writer: accepted rows reach the disk in groups, never in the request's path.

The queue is bounded by rows. What a full queue does is declared (`serving.log_policy`): it refuses
the request (503 with the reason), because a vector that is not logged can never be learned from, or
it sheds the rows and counts them. It never makes a request wait. An accepted row is written even
if the server is asked to stop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Final, Literal, Protocol

import pyarrow as pa

from headrace.errors import EnvironmentFault, IntegrityError
from headrace.log.files import FileLog
from headrace.serving.priority import step_back

LOG = logging.getLogger(__name__)
NICE: Final = 15
"""Of the thread that commits: its bursts every 0.2 s would delay the answers of that time."""
NICE_LATE: Final = 5
"""Of the one that commits in its place where more waits than `LATE` of the queue's room: at full
load a thread that gets a thirtieth of the core does not keep up. A thread may become nicer only.
"""
LATE: Final = 0.25
AT_ONCE: Final = 0.0625
"""So much of the queue's room is committed at once, at most: a large commit is a long burst where
it is late, and where it is in time it may be late before it has ended.
"""
NICE_JOINS: Final = 19
"""Of the thread that joins segments: nobody waits for it. A join takes the time that answers leave,
and where they leave none there are only more files.
"""


class Rows(Protocol):
    """Rows on their way to the log."""

    @property
    def num_rows(self) -> int: ...


class ServedWriter:
    """Bounded queue, two threads that commit in turn what has gathered, every `linger_s`, and one
    that joins small segments behind them.

    `to_table` makes one table of what was put in since; tables themselves are joined.
    """

    def __init__(
        self,
        log: FileLog,
        max_rows: int = 100_000,
        linger_s: float = 0.2,
        policy: Literal["refuse", "shed"] = "refuse",
        to_table: Callable[[Sequence[Any]], pa.Table] = pa.concat_tables,
    ) -> None:
        self._log = log
        self._max_rows = max_rows
        self._linger_s = linger_s
        self._to_table = to_table
        self._waiting: deque[Rows] = deque()
        self._policy = policy
        self._rows = 0
        self._written_rows = 0
        self._shed_rows = 0
        self._fault: str | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._grown = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._joins = threading.Thread(target=self._join, name="served-joins", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._joins.start()

    def put(self, rows: Rows) -> None:
        """Accept rows for the log, or shed them where that is the policy and there is no room.

        Raises `EnvironmentFault` without room under the policy `refuse`, and when stopping.
        """
        with self._changed:
            if self._stopping.is_set():
                raise EnvironmentFault("served log: the server is stopping; ask another one")
            if self._rows + rows.num_rows > self._max_rows:
                if self._policy == "shed":
                    self._shed_rows += rows.num_rows
                    return
                why = f" ({self._fault})" if self._fault else ""
                raise EnvironmentFault(
                    f"served log: queue full with {self._rows} of {self._max_rows} rows{why}; "
                    "retry later or give the disk room"
                )
            self._waiting.append(rows)
            self._rows += rows.num_rows
            self._changed.notify()

    def stop(self) -> None:
        """Write everything accepted, then end. Raises `EnvironmentFault` when that fails."""
        with self._changed:
            self._stopping.set()
            self._changed.notify()
        self._thread.join()
        self._joins.join()
        if self._rows:
            raise EnvironmentFault(
                f"served log: {self._rows} accepted rows could not be written: {self._fault}"
            )

    @property
    def waiting_rows(self) -> int:
        return self._rows

    @property
    def written_rows(self) -> int:
        """Rows that are durable in the log, since the start."""
        return self._written_rows

    @property
    def shed_rows(self) -> int:
        """Rows that were answered and not logged, since the start."""
        return self._shed_rows

    @property
    def fault(self) -> str | None:
        """Why the last commit failed, None when it did not."""
        return self._fault

    def _run(self) -> None:
        step_back(NICE_LATE)
        with ThreadPoolExecutor(1, "served-in-time", step_back, (NICE,)) as in_time:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._stopping.is_set())
                    stopping = self._stopping.is_set()
                if stopping:
                    while self._commit():
                        pass
                    self._grown.set()
                    return
                if self._rows <= LATE * self._max_rows:
                    went = in_time.submit(self._commit).result()
                else:
                    went = self._commit()
                if not went or self._rows < AT_ONCE * self._max_rows:
                    self._stopping.wait(self._linger_s)

    def _commit(self) -> bool:
        """Append what came first, up to `AT_ONCE`, as one segment; true where that went well.

        Rows leave the queue once they are durable.
        """
        batch = self._first()
        if not batch:
            return False
        try:
            self._log.append(self._to_table(batch).combine_chunks())
        except Exception as problem:  # noqa: BLE001 - kept, told and tried again, whatever it was
            LOG.error("served log: %s", problem)
            self._fault = str(problem)
            return False
        with self._changed:
            for rows in batch:
                self._waiting.popleft()
                self._rows -= rows.num_rows
                self._written_rows += rows.num_rows
            self._fault = None
        self._grown.set()
        return True

    def _first(self) -> list[Rows]:
        """What waits, up to `AT_ONCE` of the room; the first in any case."""
        waiting = list(self._waiting)
        room = AT_ONCE * self._max_rows
        sums = accumulate(rows.num_rows for rows in waiting)
        return waiting[: max(1, sum(total <= room for total in sums))]

    def _join(self) -> None:
        step_back(NICE_JOINS)
        while not self._stopping.is_set():
            self._grown.wait()
            self._grown.clear()
            try:
                while self._log.join():
                    if self._stopping.is_set():
                        return
            except (OSError, IntegrityError) as problem:  # nothing is lost, there are more files
                LOG.error("served log: segments not joined: %s", problem)
