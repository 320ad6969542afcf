"""The simulator's sender: events that fall due are posted to the collector in small batches.

Delivery is at least once. A batch that got no answer, a 408, 429 or 5xx is posted again with the
same ids, after the pause that the answer asks for or an ever longer one; so a crash or a crowd
at the collector may duplicate or delay events but never loses one.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import httpx

from headrace.simulate.truth import TruthLog

BATCH: Final = 200
PAUSE_S: Final = 0.1
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 5.0
_LATER: Final = (408, 429)  # too slow, too many

Event = dict[str, Any]
Entry = tuple[int, int, Event, bool]  # due µs, number (breaks ties), the event, spoiled on purpose


def now_us() -> int:
    """The wall clock in µs since the epoch."""
    return time.time_ns() // 1000


class Outbox:
    """A heap of events by due time and one thread that posts them; refusals are only counted."""

    def __init__(self, url: str, truth: TruthLog, headers: Mapping[str, str] | None = None) -> None:
        self._url, self._truth, self._headers = url, truth, headers
        self._heap: list[Entry] = []
        self._number = itertools.count()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self.counts: Counter[str] = Counter()
        self.cpu_s = 0.0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, due_us: int, event: Event, malformed: bool = False) -> None:
        """Send `event` once `due_us` has passed; `malformed` marks one spoiled on purpose."""
        with self._lock:
            heapq.heappush(self._heap, (due_us, next(self._number), event, malformed))

    def close(self, patience_s: float = 5.0) -> None:
        """Send what is due by now, giving up after `patience_s`; later events stay unsent."""
        self._give_up_at = time.monotonic() + patience_s
        self._closing.set()
        self._thread.join(timeout=patience_s + 10)
        with self._lock:
            self.counts["unsent"] += len(self._heap)

    def _due(self) -> list[Entry]:
        at_us = now_us()
        batch: list[Entry] = []
        with self._lock:
            while self._heap and self._heap[0][0] <= at_us and len(batch) < BATCH:
                batch.append(heapq.heappop(self._heap))
        return batch

    def _send_all(self) -> None:
        with httpx.Client(timeout=10.0, trust_env=False, headers=self._headers) as client:
            failures = 0
            while time.monotonic() < self._give_up_at:
                last_round = self._closing.is_set()
                batch = self._due()
                if not batch:
                    if last_round:
                        break
                    self._closing.wait(PAUSE_S)
                    continue
                again_s = self._post(client, batch, failures)
                failures = 0 if again_s is None else failures + 1
                self._rest(again_s or 0.0)
        self.cpu_s = time.thread_time()

    def _rest(self, seconds: float) -> None:
        """Wait; `close` cuts one wait short, and those after it end with its patience."""
        if self._closing.is_set():
            time.sleep(max(min(seconds, self._give_up_at - time.monotonic()), 0.0))
        elif seconds:
            self._closing.wait(seconds)

    def _post(self, client: httpx.Client, batch: list[Entry], failures: int) -> float | None:
        """Post a batch; how many seconds to wait before it is sent again, None when it is done."""
        pause_s: float = min(FIRST_RETRY_S * 2 ** min(failures, 9), LONGEST_RETRY_S)
        try:
            answer = client.post(self._url, json={"events": [entry[2] for entry in batch]})
        except httpx.HTTPError:
            self.counts["http_errors"] += 1
            self._put_back(batch)
            return pause_s
        crowded = answer.status_code in _LATER
        if crowded or answer.status_code >= 500:
            self.counts["pushed_back" if crowded else "http_errors"] += 1
            self._put_back(batch)
            asked = str(answer.headers.get("retry-after", ""))
            return min(float(asked), LONGEST_RETRY_S) if asked.isdecimal() else pause_s
        if answer.status_code != 200:  # the collector will never take these
            self.counts["refused"] += len(batch)
            return None
        counted = answer.json()
        self.counts["sent"] += len(batch)
        self.counts["accepted"] += int(counted["accepted"])
        self.counts["malformed"] += int(counted["malformed"])
        self.counts["spoiled"] += sum(entry[3] for entry in batch)
        at_us = now_us()
        self._truth.add("sent", *(_receipt(event, bad, at_us) for _, _, event, bad in batch))
        return None

    def _put_back(self, batch: list[Entry]) -> None:
        with self._lock:
            for entry in batch:
                heapq.heappush(self._heap, entry)


def _receipt(event: Event, malformed: bool, at_us: int) -> dict[str, Any]:
    return {
        "event": str(event.get("event", "")),
        "impression_id": str(event.get("impression_id", "")),
        "malformed": malformed,
        "acknowledged_at": at_us,
    }
