"""Work that is counted, not timed: a count is the same on any machine, however busy."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import pyarrow as pa


@dataclass
class Work:
    """What this thread did in a block: calls, of Python's functions and of C's; bytes that
    Arrow was asked for; and bytes that Python and NumPy held at most beyond those before.
    """

    calls: int = 0
    arrow_bytes: int = 0
    peak_bytes: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """Count what the block does."""
    work, pool = Work(), pa.default_memory_pool()

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            work.calls += 1

    before = pool.total_bytes_allocated()
    tracemalloc.start()
    sys.setprofile(count)
    try:
        yield work
    finally:
        sys.setprofile(None)
        work.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        work.arrow_bytes = pool.total_bytes_allocated() - before
