"""Window features for many past moments: the kernel, one view and one range of keys at a time.

Memory beyond the tables that come in and go out is bounded by the rows of one range (or of the
hottest key).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec, WindowFeature
from headrace.windows import Ints, WindowState, key_hashes

_MOST_RANGES: Final = 256
RANGE_ROWS: Final = 500_000  # as quick as any size between 200 k and 2 M, and 150 MB


def features(
    spec: LineSpec,
    resolved: pa.Table,
    queries: pa.Table,
    *,
    views: Collection[str] | None = None,
    range_rows: int = RANGE_ROWS,
) -> pa.Table:
    """Window features of each query as known at its moment, of all views or of some.

    `resolved` is what `LabelState.resolve` gives; `queries` holds the key columns and
    `request_at` (int64 µs or UTC timestamp). Returns one int64 column for each window feature,
    row for row. About `range_rows` events and queries are taken at a time.
    """
    wanted = [view for view in spec.views if views is None or view in views]
    found = _by_ranges(spec, wanted, resolved, queries, range_rows)
    fields = [
        pa.field(feature.name, pa.int64(), nullable=False)
        for feature in spec.windows
        if feature.name in found
    ]
    return pa.table([found[field.name] for field in fields], schema=pa.schema(fields))


def _by_ranges(
    spec: LineSpec, views: list[str], resolved: pa.Table, queries: pa.Table, range_rows: int
) -> dict[str, Ints]:
    ranges = min(_MOST_RANGES, 1 + (resolved.num_rows + queries.num_rows) // range_rows)
    found: dict[str, Ints] = {}
    at_us = queries.column("request_at").cast(pa.int64()).to_numpy()
    for view in views:
        declared = spec.views[view]
        key = declared[0].key
        events = resolved.select(event_columns(declared))
        asked = queries.select(key)
        answers = {f.name: np.full(queries.num_rows, f.empty, dtype=np.int64) for f in declared}
        event_rows = _ranges(key_hashes(events, key), ranges)
        for mine, places in zip(event_rows, _ranges(key_hashes(asked, key), ranges), strict=True):
            if mine.size and places.size:
                state = WindowState(spec, views=[view])
                state.append(events.take(mine))
                values = state.values(asked.take(places), at_us[places])
                for name, column in answers.items():
                    column[places] = values.column(name).to_numpy()
        found.update(answers)
    return found


def _ranges(hashes: Ints, ranges: int) -> Iterator[NDArray[np.int32]]:
    """Rows of each range of hashes in turn, rising; a null key (-1) is in none."""
    # 63-bit hashes: the leading 31 bits times the ranges still fit
    place = ((hashes >> 32) * ranges) >> 31  # a null's -1 stays -1
    grouped = np.argsort(place.astype(np.int16), kind="stable").astype(np.int32)  # by radix
    sizes = np.bincount(place + 1, minlength=ranges + 1)
    ends = np.cumsum(sizes)
    return (grouped[ends[i] : ends[i + 1]] for i in range(ranges))


def event_columns(declared: tuple[WindowFeature, ...]) -> list[str]:
    """Columns of the events that one view reads."""
    read = {feature.reads for feature in declared if feature.reads is not None}
    key = declared[0].key
    return ["knowledge_at", "event", *key, *sorted({"value", *read} - {*key})]
