"""A view's mark: the time of its newest pushed row, kept beside the rows in the online store.

Rows and mark are lost together, by a Redis that restarts empty or from an older snapshot as by a
power cut. So the mark tells what a writer has to push again, and a writer that finds another
mark than it left knows that rows are gone.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import EnvironmentFault


def newest_us(rows: pa.Table, after_us: int | None) -> int:
    """The mark once `rows` (at least one, with `event_timestamp`) are written."""
    newest: int = pc.max(rows["event_timestamp"].cast(pa.int64())).as_py()
    return max(newest, newest if after_us is None else after_us)


def check_mark(view: str, held_us: int | None, expected_us: int | None) -> None:
    """Raise `EnvironmentFault` unless the store still holds the mark that was left there."""
    if held_us != expected_us:
        raise EnvironmentFault(
            f"online store: {view} was written until {expected_us} us, but is marked {held_us}: "
            "it lost rows (a Redis that restarted without its data?) or something else writes to "
            "it; `headrace ingest` pushes what is missing when it starts again"
        )
