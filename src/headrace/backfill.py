"""Window features for many past moments: the kernel in this process or inside Spark by key.

In this process one view and one range of key hashes are worked on at a time, so memory beyond
the tables that come in and go out is bounded by the rows of one range (or of the hottest key).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec, WindowFeature
from headrace.windows import Ints, WindowState, key_hashes

_KEY, _ROW, _AT = "_key", "_row", "_at"
_EVENT_ROW = -1
_MOST_RANGES: Final = 256
RANGE_ROWS: Final = 500_000  # as quick as any size between 200 k and 2 M, and 150 MB


def features(
    spec: LineSpec,
    resolved: pa.Table,
    queries: pa.Table,
    engine: Literal["local", "spark"] = "local",
    *,
    master: str = "local[2]",
    partitions: int = 8,
    range_rows: int = RANGE_ROWS,
) -> pa.Table:
    """Window features of each query as known at its moment; both engines agree bit by bit.

    `resolved` is what `LabelState.resolve` gives; `queries` holds the key columns and
    `request_at` (int64 µs or UTC timestamp). Returns one int64 column for each window feature,
    row for row. The local engine takes about `range_rows` events and queries at a time.
    `master` and `partitions` concern Spark alone, which needs Java 17 (EnvironmentFault) and
    holds one partition's events of one view in a worker's memory.
    """
    moments = queries.column("request_at").cast(pa.int64())
    if engine == "local":
        found = _by_ranges(spec, resolved, queries, moments.to_numpy(), range_rows)
    else:
        found = _by_spark(spec, resolved, queries, moments, master=master, partitions=partitions)
    fields = [pa.field(feature.name, pa.int64(), nullable=False) for feature in spec.windows]
    return pa.table([found[field.name] for field in fields], schema=pa.schema(fields))


def _by_ranges(
    spec: LineSpec, resolved: pa.Table, queries: pa.Table, at_us: Ints, range_rows: int
) -> dict[str, pa.ChunkedArray | Ints]:
    ranges = min(_MOST_RANGES, 1 + (resolved.num_rows + queries.num_rows) // range_rows)
    found: dict[str, pa.ChunkedArray | Ints] = {}
    for view, declared in spec.views.items():
        key = declared[0].key
        events = resolved.select(_event_columns(declared, "knowledge_at"))
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


def _by_spark(
    spec: LineSpec,
    resolved: pa.Table,
    queries: pa.Table,
    moments: pa.ChunkedArray,
    *,
    master: str,
    partitions: int,
) -> dict[str, pa.ChunkedArray]:
    from headrace import spark

    found: dict[str, pa.ChunkedArray] = {}
    with spark.session(master) as session:
        for view, declared in spec.views.items():
            schema = _answer_schema(declared)
            answers = spark.map_by_key(
                session,
                _questions_and_events(declared, resolved, queries, moments),
                _KEY,
                partial(_answer, spec, view),
                schema,
                partitions=partitions,
            )
            found.update(_by_query(answers, declared, queries.num_rows))
    return found


def _answer_schema(declared: tuple[WindowFeature, ...]) -> pa.Schema:
    return pa.schema({_ROW: pa.int64(), **{feature.name: pa.int64() for feature in declared}})


def _event_columns(declared: tuple[WindowFeature, ...], *more: str) -> list[str]:
    """Columns of the events that one view reads."""
    read = {feature.reads for feature in declared if feature.reads is not None}
    key = declared[0].key
    return [*more, "event", *key, *sorted({"value", *read} - {*key})]


def _questions_and_events(
    declared: tuple[WindowFeature, ...],
    resolved: pa.Table,
    queries: pa.Table,
    moments: pa.ChunkedArray,
) -> pa.Table:
    """One table of both, for one view: only rows with a whole key, only columns that count."""
    key = declared[0].key
    events = resolved.select(_event_columns(declared))
    events = events.append_column(_AT, resolved.column("knowledge_at").cast(pa.int64()))
    events = events.append_column(
        _ROW, pa.array(np.full(resolved.num_rows, _EVENT_ROW, dtype=np.int64))
    )
    asked = queries.select(key).append_column(_AT, moments)
    asked = asked.append_column(_ROW, pa.array(np.arange(queries.num_rows, dtype=np.int64)))
    both = pa.concat_tables([events, asked], promote_options="permissive")
    hashes = pa.concat_arrays([pa.array(key_hashes(part, key)) for part in (resolved, queries)])
    both = both.append_column(_KEY, hashes)
    return both.filter(pc.greater_equal(both.column(_KEY), 0))


def _answer(spec: LineSpec, view: str, rows: pa.Table) -> pa.Table:
    """In a worker: all events and queries of some keys of one view."""
    is_event = pc.equal(rows.column(_ROW), _EVENT_ROW)
    events, asked = rows.filter(is_event), rows.filter(pc.invert(is_event))
    state = WindowState(spec, views=[view])
    state.append(events.rename_columns({_AT: "knowledge_at"}))
    values = state.values(asked, asked.column(_AT).to_numpy())
    return values.add_column(0, _ROW, asked.column(_ROW))


def _by_query(
    answers: pa.Table, declared: tuple[WindowFeature, ...], rows: int
) -> dict[str, pa.ChunkedArray]:
    places = answers.column(_ROW).to_numpy()
    found = {}
    for feature in declared:
        values = np.full(rows, feature.empty, dtype=np.int64)
        values[places] = answers.column(feature.name).to_numpy()
        found[feature.name] = pa.chunked_array([values])
    return found
