"""Window features for many past moments: the kernel in this process or inside Spark by key."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec, WindowFeature
from headrace.windows import WindowState, key_hashes

_KEY, _ROW, _AT = "_key", "_row", "_at"
_EVENT_ROW = -1


def features(
    spec: LineSpec,
    resolved: pa.Table,
    queries: pa.Table,
    engine: Literal["local", "spark"] = "local",
    *,
    master: str = "local[2]",
    partitions: int = 8,
) -> pa.Table:
    """Window features of each query as known at its moment; both engines agree bit by bit.

    `resolved` is what `LabelState.resolve` gives; `queries` holds the key columns and
    `request_at` (int64 µs or UTC timestamp). Returns one int64 column for each window feature,
    row for row. `master` and `partitions` concern Spark alone, which needs Java 17
    (EnvironmentFault) and holds one partition's events of one view in a worker's memory.
    """
    moments = queries.column("request_at").cast(pa.int64())
    if engine == "local":
        state = WindowState(spec)
        state.append(resolved)
        return state.values(queries, moments.to_numpy())
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
    fields = [pa.field(feature.name, pa.int64(), nullable=False) for feature in spec.windows]
    return pa.table([found[field.name] for field in fields], schema=pa.schema(fields))


def _answer_schema(declared: tuple[WindowFeature, ...]) -> pa.Schema:
    return pa.schema({_ROW: pa.int64(), **{feature.name: pa.int64() for feature in declared}})


def _questions_and_events(
    declared: tuple[WindowFeature, ...],
    resolved: pa.Table,
    queries: pa.Table,
    moments: pa.ChunkedArray,
) -> pa.Table:
    """One table of both, for one view: only rows with a whole key, only columns that count."""
    key = declared[0].key
    read = {feature.reads for feature in declared if feature.reads is not None} - {*key}
    columns = ["event", *key, *sorted({"value", *read})]
    events = resolved.select(columns)
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
