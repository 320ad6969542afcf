"""The window kernel against DuckDB's range frames: same events, same questions, same bits.

CPU seconds of this process (all threads), interleaved, medians. The peer is hand-written SQL
with `RANGE BETWEEN w PRECEDING AND 1 PRECEDING` over integer microseconds.
"""

from __future__ import annotations

import statistics
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench._measure import timed
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_settings
from headrace.windows import WindowState

SEED = 7
US = 1_000_000


def run(*, quick: bool = False) -> dict[str, Any]:
    """Time both engines on 2 M events (20 k when quick) and compare every value."""
    rows, rounds = (20_000, 1) if quick else (2_000_000, 3)
    spec = find_line(load_settings(), "coupons")
    events = make_events(rows)
    kernel_s, peer_s = [], []
    for _ in range(rounds):
        ours, seconds = timed(kernel, spec, events)
        kernel_s.append(seconds)
        theirs, seconds = timed(range_frames, spec, events)
        peer_s.append(seconds)
    ratio = statistics.median(a / b for a, b in zip(kernel_s, peer_s, strict=True))
    equal = ours.equals(theirs)
    return {
        "what": "window values at every impression, coupons' windows",
        "rows": rows,
        "peers": {"duckdb": duckdb.__version__},
        "cpu_s": {"kernel": kernel_s, "duckdb": peer_s},
        "claims": [
            {"name": "bit-equal to DuckDB", "value": float(equal), "unit": "", "goal": 1,
             "holds": equal},
            {"name": "CPU of the kernel over DuckDB", "value": ratio, "unit": "x",
             "goal": "<= 1", "holds": ratio <= 1},
        ],
    }  # fmt: skip


def make_events(rows: int) -> pa.Table:
    """Impressions and 10% clicks over two hours, Zipf items, in order of knowledge."""
    rng = np.random.default_rng(SEED)
    items = rng.zipf(1.2, rows) % 20_000
    users = rng.integers(0, 100_000, rows)
    return pa.table(
        {
            "knowledge_at": np.sort(rng.integers(0, 7_200 * US, rows)),
            "event": np.where(rng.random(rows) < 0.1, "click", "impression"),
            "value": np.ones(rows, np.int64),
            "user_id": pa.array(users).cast(pa.string()),
            "item_id": pa.array(items).cast(pa.string()),
            "category": pa.array(items % 8).cast(pa.string()),
            "discount": np.zeros(rows),
            "position": np.zeros(rows, np.int64),
        }
    )


def kernel(spec: LineSpec, events: pa.Table) -> pa.Table:
    """All window features at each impression, by the product's kernel."""
    state = WindowState(spec)
    state.append(events)
    asked = events.filter(pc.equal(events["event"], "impression"))
    return state.values(asked, asked["knowledge_at"].to_numpy())


def range_frames(spec: LineSpec, events: pa.Table) -> pa.Table:
    """The same by DuckDB: one window frame for each feature."""
    selected = []
    for feature in spec.windows:
        column = "1" if feature.aggregate == "count" else feature.column
        selected.append(
            f"CAST(COALESCE(SUM({column}) FILTER (WHERE event = '{feature.event}') OVER ("
            f"PARTITION BY {', '.join(feature.key)} ORDER BY knowledge_at "
            f"RANGE BETWEEN {feature.window} PRECEDING AND 1 PRECEDING), 0) AS BIGINT) "
            f"AS {feature.name}"
        )
    query = (
        f"WITH numbered AS (SELECT *, row_number() OVER () AS place FROM events), "
        f"framed AS (SELECT place, event, {', '.join(selected)} FROM numbered) "
        f"SELECT * EXCLUDE (place, event) FROM framed WHERE event = 'impression' ORDER BY place"
    )
    with duckdb.connect() as connection:
        connection.register("events", events)
        table = connection.sql(query).to_arrow_table()
    names = [feature.name for feature in spec.windows]
    schema = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in names])
    return pa.table([table[name].combine_chunks() for name in names], schema=schema)
