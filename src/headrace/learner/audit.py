"""The two questions that cost too much for every step, asked every few seconds beside the steps.

Great Expectations takes 0.2 s of CPU for a window of any size, parity 0.6 s for 500 served rows;
a step takes 0.05 s. So the whole suite and parity are put to the newest accepted window every
`EVERY_S`, and each step's evidence carries the newest answer with its age: an audit that failed,
is older than `MAX_AGE_S` or never was made rejects the step.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace import parity, quality
from headrace.declaration import LineSpec
from headrace.evaluate import served_rows
from headrace.learner.intake import Chunk
from headrace.parity import ParityReport
from headrace.settings import Settings

EVERY_S: Final = 10.0
MAX_AGE_S: Final = 60.0
ROWS: Final = 500


@dataclass(frozen=True)
class Audit:
    """What was found at `at_us`: of the data gate why it refused, of parity its report."""

    at_us: int
    reasons: tuple[str, ...]
    served: int
    proof: ParityReport


class Auditor:
    """Audits one window at a time, in `executor` or, without one, at once."""

    def __init__(self, settings: Settings, spec: LineSpec, executor: Executor | None) -> None:
        self._settings, self._spec, self._executor = settings, spec, executor
        self._running: Future[Audit] | None = None
        self._due = time.monotonic()
        self._newest: Audit | None = None

    def offer(self, chunk: Chunk) -> None:
        """Audit the window that ends with an accepted chunk, if an audit is due."""
        if self._running is not None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        if self._executor is None:
            self._newest = self._audit(chunk)
        else:
            self._running = self._executor.submit(self._audit, chunk)

    def newest(self) -> Audit | None:
        """The newest audit, None before there is one. Raises what the audit raised."""
        if self._running is not None and self._running.done():
            running, self._running = self._running, None
            self._newest = running.result()
        return self._newest

    def _audit(self, chunk: Chunk) -> Audit:
        at_us = time.time_ns() // 1_000
        report = quality.check(self._spec, chunk.window, chunk.settled)
        served = served_rows(self._spec, _first(chunk.window), ROWS)
        proof = parity.check(self._settings, self._spec, served, history="parts", shown=1)
        return Audit(at_us, tuple(report.reasons), served.num_rows, proof)


def _first(window: pa.Table) -> pa.Table:
    """Each impression once: a correction repeats the vector of its first sample."""
    return window.filter(pc.equal(window["revision"], 0))
