"""The learner in Prometheus' terms, and the small server that tells them: `/metrics`, `/health`."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.meters import Meters
from headrace.records import Cycle

_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
OUTCOMES: Final = ("promoted", "rejected", "failed")
STAGES: Final = ("data", "model", "promote")


class LearnerMetrics(Meters):
    """Counters, a histogram and gauges of one learner process."""

    def __init__(self, spec: LineSpec) -> None:
        super().__init__("headrace_learner", spec, "What this process learns.")
        self._steps = self._counter(
            "steps",
            "Ended steps by outcome, and by the stage that ended them.",
            "outcome",
            "stage",
        )
        for outcome in OUTCOMES:
            for stage in STAGES:
                self._steps.labels(outcome, stage)
        self._seconds = self._histogram(
            "step_seconds", "Taking in, judging and learning one chunk of ticks.", _BUCKETS
        )
        self._failures = self._gauge(
            "failing", "1 while the last look at the line raised an error, else 0."
        )
        self._watermark = self._gauge(
            "watermark_timestamp_seconds", "Arrival of the newest event that the champion learned."
        )
        self._behind = self._gauge(
            "ticks_behind", "Committed ticks that the learner has not taken in."
        )
        self.status: dict[str, Any] = {"status": "waiting", "line": spec.line}

    def looked(self, ended: list[Cycle], seconds: float, behind: int) -> None:
        """Count what one look came to; `behind`: ticks left."""
        for step in ended:
            self._steps.labels(step.outcome, step.stage).inc()
        if ended:
            self._seconds.observe(seconds)
        self._behind.set(behind)
        self._failures.set(0)

    def failed(self, problem: str) -> None:
        """Count a look that raised."""
        self._steps.labels("failed", "model").inc()
        self._failures.set(1)
        self.status |= {"status": "failing", "problem": problem}

    def stands(self, version: str, watermark_us: int) -> None:
        """The champion, and the newest event that it learned."""
        self._watermark.set(watermark_us / 1e6)
        staleness_s = round(time.time() - watermark_us / 1e6, 3)
        line = self.status["line"]
        self.status = {
            "status": "ok", "line": line, "champion": version, "staleness_s": staleness_s
        }  # fmt: skip


class MetricsServer:
    """Answers `GET /metrics` and `GET /health` (503 while failing) from a thread of its own."""

    def __init__(self, metrics: LearnerMetrics, host: str, port: int) -> None:
        """Raises `EnvironmentFault` when the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._tell(200, CONTENT_TYPE_LATEST, metrics.page())
                elif self.path == "/health":
                    failing = metrics.status["status"] == "failing"
                    body = json.dumps(metrics.status).encode()
                    self._tell(503 if failing else 200, "application/json", body)
                else:
                    self._tell(404, "text/plain", b"there are /metrics and /health\n")

            def _tell(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing: a scrape each few seconds is no news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as problem:
            raise EnvironmentFault(
                f"port {port} on {host} is not free ({problem.strerror}); stop what uses it or "
                "set HEADRACE_LEARNER_PORT"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="learner-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
