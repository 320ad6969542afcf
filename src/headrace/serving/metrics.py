"""The scoring server in Prometheus' terms, and how long its newest requests took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.meters import Meters
from headrace.serving.features import Features
from headrace.serving.served import ServedWriter
from headrace.serving.swap import Follower

Protocol = Literal["http", "grpc"]
Outcome = Literal["answered", "refused", "denied", "limited", "unavailable", "failed", "left"]
OUTCOMES: Final[dict[Outcome, str]] = {
    "answered": "scores went out",
    "refused": "the request was wrong",
    "denied": "no token, a wrong one, or another site's page",
    "limited": "more than serving.rate allows",
    "unavailable": "no model, no features or no room in the served log",
    "failed": "an error of the server",
    "left": "the sender hung up within its request",
}
PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "grpc")
RECENT: Final = 4096
RECENT_S: Final = 60.0
_BUCKETS: Final = (0.001, 0.002, 0.004, 0.008, 0.012, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Recent:
    """Answered requests of the last `seconds`: how many a second, and their times.

    p50_ms, p99_ms: from arrival to answer, over the newest 4,096 at most; None without any.
    """

    seconds: float
    requests: int
    per_second: float
    p50_ms: float | None
    p99_ms: float | None


class ServingMetrics(Meters):
    """Counters, a histogram and gauges of one scoring server. Safe for threads."""

    def __init__(self, spec: LineSpec, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("headrace_serving", spec, "What this process serves.")
        self._clock = clock
        self._began = clock()
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        requests = self._counter(
            "requests", "Scoring requests by protocol and outcome.", "protocol", "outcome"
        )
        self._seconds = self._histogram(
            "request_seconds", "From the arrival of an answered scoring request to its answer.",
            _BUCKETS, "protocol",
        )  # fmt: skip
        self._requests = requests
        self._counted = {
            (protocol, outcome): requests.labels(protocol, outcome)
            for protocol in PROTOCOLS
            for outcome in OUTCOMES
        }
        self._took = {protocol: self._seconds.labels(protocol) for protocol in PROTOCOLS}

    def follows(self, models: Follower, served: ServedWriter, features: Features) -> None:
        """Tell also of the champion, the served log and the features; to be called once."""

        def watermark_s() -> float:
            try:
                return models.current().version.watermark_us / 1e6
            except EnvironmentFault:
                return float("nan")

        self.observe(
            {
                "champion_watermark_timestamp_seconds": (
                    "Arrival of the newest event that the champion learned; NaN without one.",
                    watermark_s,
                ),
                "staleness_seconds": (
                    "Now minus the champion's watermark; NaN without a champion.",
                    lambda: time.time() - watermark_s(),
                ),
                "features_timestamp_seconds": (
                    "Knowledge time of the newest feature row seen in the online store; NaN: none.",
                    lambda: (features.seen().newest_us or float("nan")) / 1e6,
                ),
                "feature_rows_in_memory": (
                    "Feature rows that are held, as new as the online store's.",
                    lambda: features.seen().in_memory,
                ),
                "served_rows_waiting": (
                    "Answered rows that the served log does not hold yet.",
                    lambda: served.waiting_rows,
                ),
            }
        )
        self.observe_totals(
            {
                "swaps": ("Changes of what serves.", lambda: models.delivered.swaps),
                "deltas_applied": ("Deltas applied to a model.", lambda: models.delivered.deltas),
                "deltas_refused": ("Deltas not applied.", lambda: models.delivered.refused),
                "bases_loaded": ("Models loaded whole.", lambda: models.delivered.bases),
                "feature_rows_read": (
                    "Feature rows that the online store was asked for.",
                    lambda: features.seen().read,
                ),
                "feature_rows_from_memory": (
                    "Feature rows that were held when requests needed them.",
                    lambda: features.seen().from_memory,
                ),
                "served_rows": ("Rows durable in the served log.", lambda: served.written_rows),
                "served_rows_shed": (
                    "Rows that were answered and not logged.",
                    lambda: served.shed_rows,
                ),
            }
        )

    def ended(self, protocol: Protocol, outcome: Outcome, seconds: float) -> None:
        """Count one scoring request and, when it was answered, its time."""
        self._counted[protocol, outcome].inc()
        if outcome == "answered":
            self._took[protocol].observe(seconds)
            self._recent.append((self._clock(), seconds))

    def counts(self) -> dict[str, int]:
        """Scoring requests since the start by outcome, over all protocols."""
        found = dict.fromkeys(OUTCOMES, 0)
        for family in self._requests.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    found[sample.labels["outcome"]] += int(sample.value)  # type: ignore[index]
        return {str(outcome): count for outcome, count in found.items()}

    def recent(self) -> Recent:
        """How fast the newest requests were answered."""
        now = self._clock()
        held = self._recent.copy()
        times = np.array([took for at, took in held if now - at <= RECENT_S])
        since = held[0][0] if len(held) == RECENT else self._began
        seconds = min(max(now - since, 1e-3), RECENT_S)
        p50, p99 = np.percentile(times, [50, 99]) * 1e3 if times.size else (None, None)
        return Recent(
            seconds=round(seconds, 3),
            requests=times.size,
            per_second=round(times.size / seconds, 3),
            p50_ms=None if p50 is None else round(float(p50), 3),
            p99_ms=None if p99 is None else round(float(p99), 3),
        )


def outcome_of(status: int | None) -> Outcome:
    """What a scoring request came to, by the status of its answer (None: there was none)."""
    if status is None:
        return "left"
    if status < 400:
        return "answered"
    named: dict[int, Outcome] = {401: "denied", 403: "denied", 429: "limited", 503: "unavailable"}
    return named.get(status, "refused" if status < 500 else "failed")
