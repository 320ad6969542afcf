"""The ingest process in Prometheus' terms.

Labels take their values from closed sets: reasons of refusal, stages of a tick, fates, and the
line's views.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.ingest.limits import REASONS
from headrace.ingest.online import Online
from headrace.labels.state import fates_of
from headrace.meters import Meters
from headrace.sample import TickManifest

_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
STAGES: Final = ("read", "windows", "labels", "write", "push")


class IngestMetrics(Meters):
    """Counters, histograms and gauges of one ingest process."""

    def __init__(self, spec: LineSpec) -> None:
        super().__init__("headrace_ingest", spec, "What this process ingests.")
        self.accepted = self._counter("events_accepted", "Events stored and acknowledged.")
        self.malformed = self._counter(
            "events_malformed", "Events refused for good and kept with their reason."
        )
        self.refused = self._counter(
            "requests_refused", "Requests of which nothing was kept, by reason.", "reason"
        )
        self.append_seconds = self._histogram(
            "append_seconds", "Making one group of events durable in the log.", _BUCKETS
        )
        self._ticks = self._counter("ticks", "Committed ticks.")
        self._tick_seconds = self._histogram(
            "tick_seconds", "What the stages of a tick took.", _BUCKETS, "stage"
        )
        self._checkpoint_seconds = self._histogram(
            "checkpoint_seconds", "Writing windows and labels for a quick restart.", _BUCKETS
        )
        self._samples = self._counter("samples", "Samples emitted, corrections included.")
        self._corrections = self._counter("corrections", "Samples that correct an earlier one.")
        self._fates = self._counter("fates", "Events that ended without a sample.", "fate")
        self._rows_pushed = self._counter(
            "feature_rows_pushed", "Feature rows written to the online store.", "view"
        )
        self.push_failures = self._counter(
            "push_failures", "Pushes to the online store that failed and were tried again."
        )
        self._last_push = self._gauge(
            "last_push_timestamp_seconds", "When the online store last took a push; 0 for never."
        )
        self._watermark = self._gauge(
            "watermark_timestamp_seconds", "Arrival of the newest event that a tick has read."
        )
        for reason in REASONS:
            self.refused.labels(reason)
        for stage in STAGES:
            self._tick_seconds.labels(stage)
        self._every_fate = fates_of(spec)
        for fate in self._every_fate:
            self._fates.labels(fate)
        for view in spec.views:
            self._rows_pushed.labels(view)

    def tick(self, manifest: TickManifest, spent_s: Mapping[str, float]) -> None:
        """Count a committed tick; `spent_s`: seconds by stage, and `checkpoint` if one was due."""
        counts = manifest.counts
        self._ticks.inc()
        self._samples.inc(counts["samples"])
        self._corrections.inc(counts["corrections"])
        for fate in self._every_fate:
            self._fates.labels(fate).inc(counts.get(fate, 0))
        for stage in STAGES:
            self._tick_seconds.labels(stage).observe(spent_s.get(stage, 0.0))
        if "checkpoint" in spent_s:
            self._checkpoint_seconds.observe(spent_s["checkpoint"])
        self.moved_to(manifest.at_us)

    def moved_to(self, at_us: int) -> None:
        """Ticks have read everything that arrived before this moment."""
        self._watermark.set(at_us / 1e6)

    def counted(self, online: Online) -> Online:
        """The same online store; what it takes is counted."""
        return _Counted(online, self)

    def pushed(self, view: str, rows: int) -> None:
        """The online store has taken rows of a view, just now."""
        self._rows_pushed.labels(view).inc(rows)
        self._last_push.set_to_current_time()


class _Counted:
    """An online store that counts what another one takes."""

    def __init__(self, online: Online, metrics: IngestMetrics) -> None:
        self._online, self._metrics = online, metrics

    def push(self, view: str, rows: pa.Table) -> None:
        self._online.push(view, rows)
        self._metrics.pushed(view, rows.num_rows)

    def mark_us(self, view: str) -> int | None:
        return self._online.mark_us(view)

    def clear(self, view: str) -> None:
        self._online.clear(view)
