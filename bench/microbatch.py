"""Micro-batches over a large state, committed: the kernel against DuckDB, Polars and Spark.

Each engine takes the same batch, computes six windows on three keys for each impression at its
own moment and writes them durably as Parquet. CPU seconds of this process (all threads; of
Spark, its JVM too, without its start). The peers hold their history in memory as the kernel
does, read only the keys of the batch and the span of their longest window, and are hand-written
for it. They take the first batches, interleaved; the kernel alone goes on through a cycle of
merges and expiry, and its figure is the mean with all of that, where a peer's is the median.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench._measure import (
    DAY_US,
    at_least,
    at_most,
    equality,
    frame,
    int_table,
    make_events,
    not_measured,
    present,
    six_windows,
)
from bench._process import cpu_of_tree
from headrace import spark
from headrace.atomic import write_parquet
from headrace.declaration import LineSpec, WindowFeature
from headrace.windows import WindowState

SPAN_US = 7 * DAY_US  # the longest window: the state neither grows nor shrinks
FASTER = 5.0
SPARK_SIZE = (2_000_000, 100_000)  # a batch takes Spark half a minute: one size, once warm
SPARK_BATCHES = 2
# state, batch, batches with peers, batches of the kernel, goal in µs of CPU per event
QUICK = [(20_000, 1_000, 2, 4, None), (20_000, 5_000, 1, 2, None)]
FULL = [
    (2_000_000, 1_000, 5, 400, None),
    (2_000_000, 10_000, 5, 160, 7.0),
    (2_000_000, 100_000, 5, 16, 4.5),
    (10_000_000, 100_000, 3, 80, 10.0),
]


class Engine(Protocol):
    """Holds history; adds a batch and answers its impressions."""

    def absorb(self, batch: pa.Table, asked: pa.Table) -> pa.Table: ...

    def cpu_s(self) -> float: ...


class InProcess:
    """An engine whose work is done in this process."""

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return time.process_time()


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure every size; the claims are the issue's."""
    spec = six_windows()
    peers: dict[str, Any] = {"duckdb": InDuckDB}
    if present("polars"):
        peers["polars"] = InPolars
    seconds: dict[str, list[float]] = {}
    claims: list[dict[str, Any]] = []
    equal, keys = True, {}
    for state, batch, shared, rounds, goal in QUICK if quick else FULL:
        events = make_events(state + batch * rounds, round(SPAN_US * (1 + batch * rounds / state)))
        history = events.slice(0, state)
        keys[f"{state:,}"] = _distinct_keys(spec, history)
        engines: dict[str, Engine] = {"kernel": Kernel(spec, history)}
        engines |= {name: peer(spec, history) for name, peer in peers.items()}
        batches = [events.slice(state + i * batch, batch) for i in range(rounds)]
        with ExitStack() as open_engines:
            if (state, batch) == SPARK_SIZE:
                session = open_engines.enter_context(spark.session())
                engines["spark"] = InSpark(spec, history, session)
            found, same = _measure(engines, batches, shared)
        equal &= same
        size = f"{batch:,} over {state:,}"
        seconds |= {f"{name}, {size}": times for name, times in found.items()}
        claims += _claims(size, batch, found, goal)
    return {
        "what": "micro-batches, six windows on three keys, commit with fsync",
        "rows": max(row[0] for row in (QUICK if quick else FULL)),
        "keys": keys,
        "peers": {name: _version(name) for name in ("duckdb", "polars")}
        | {"spark": version("pyspark")},
        "cpu_s": seconds,
        "claims": [equality("bit-equal to the peers", equal), *claims],
    }


def _measure(
    engines: dict[str, Engine], batches: Sequence[pa.Table], shared: int
) -> tuple[dict[str, list[float]], bool]:
    found: dict[str, list[float]] = {name: [] for name in engines}
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        for number, batch in enumerate(batches):
            answers = {}
            for name, engine in engines.items():
                if name == "kernel" or number < (SPARK_BATCHES if name == "spark" else shared):
                    path = Path(folder) / name / f"b={number:08d}.parquet"
                    began = engine.cpu_s()
                    answers[name] = _commit(engine, batch, path)
                    found[name].append(engine.cpu_s() - began)
            equal &= all(table.equals(answers["kernel"]) for table in answers.values())
            if number + 1 == shared:
                engines = {"kernel": engines["kernel"]}
    return found, equal


def _commit(engine: Engine, batch: pa.Table, path: Path) -> pa.Table:
    """What a tick does with its events, up to the durable file."""
    asked = batch.filter(pc.equal(batch["event"], "impression"))
    values = engine.absorb(batch, asked)
    for place, name in enumerate(("knowledge_at", "user_id", "item_id")):
        values = values.add_column(place, name, asked.column(name))
    write_parquet(path, values)
    return values


def _claims(
    size: str, batch: int, found: dict[str, list[float]], goal: float | None
) -> list[dict[str, Any]]:
    ours = statistics.mean(found["kernel"])
    claims = []
    if goal is not None:
        claims.append(at_most(f"CPU per event, {size}", 1e6 * ours / batch, "µs", goal))
    for peer in ("duckdb", "polars"):
        name = f"CPU of {peer} over the kernel's, {size}"
        if peer in found:
            claims.append(at_least(name, statistics.median(found[peer]) / ours, "x", FASTER))
        else:
            claims.append(not_measured(name, peer))
    if "spark" in found:
        name = f"CPU of spark over the kernel's, {size}"
        claims.append(at_least(name, found["spark"][-1] / ours, "x", FASTER))
    return claims


def _distinct_keys(spec: LineSpec, events: pa.Table) -> int:
    keys = {feature.key for feature in spec.windows}
    return sum(events.group_by(list(key)).aggregate([]).num_rows for key in keys)


def _version(package: str) -> str:
    if not present(package):
        return "absent"
    return str(__import__(package).__version__)


class Kernel(InProcess):
    """Headrace's own."""

    def __init__(self, spec: LineSpec, history: pa.Table) -> None:
        self.state = WindowState(spec)
        self.state.append(history)

    def absorb(self, batch: pa.Table, asked: pa.Table) -> pa.Table:
        self.state.append(batch)
        moments = asked["knowledge_at"].to_numpy()
        values = self.state.values(asked, moments)
        self.state.expire(int(moments[-1]))
        return values


def _views(spec: LineSpec) -> list[tuple[tuple[str, ...], list[WindowFeature], int]]:
    """Key, features and longest window of each view."""
    return [
        (features[0].key, list(features), max(feature.window for feature in features))
        for features in spec.views.values()
    ]


def _range_frames(
    key: tuple[str, ...],
    features: Sequence[WindowFeature],
    expression: Callable[[WindowFeature], str],
    since_us: int,
    first: int,
) -> str:
    """SQL for a view's windows at the batch's impressions, over the rows of its keys alone."""
    return (
        f"WITH near AS (SELECT * FROM events SEMI JOIN batch USING ({', '.join(key)}) "
        f"WHERE knowledge_at >= {since_us}), "
        f"framed AS (SELECT place, event, {', '.join(map(expression, features))} FROM near) "
        f"SELECT {', '.join(feature.name for feature in features)} FROM framed "
        f"WHERE event = 'impression' AND place >= {first} ORDER BY place"
    )


class InDuckDB(InProcess):
    """A table in memory; range frames over the batch's keys within the longest window."""

    def __init__(self, spec: LineSpec, history: pa.Table) -> None:
        self.spec = spec
        self.rows = history.num_rows
        self.connection = duckdb.connect()
        self.connection.register("history", history)
        self.connection.execute(
            "CREATE TABLE events AS SELECT row_number() OVER () - 1 AS place, * FROM history"
        )
        self.connection.unregister("history")

    def absorb(self, batch: pa.Table, asked: pa.Table) -> pa.Table:
        first = self.rows
        self.rows += batch.num_rows
        numbered = batch.add_column(0, "place", pa.array(np.arange(first, self.rows)))
        self.connection.register("batch", numbered)
        self.connection.execute("INSERT INTO events SELECT * FROM batch")
        found: dict[str, Any] = {}
        start = int(batch["knowledge_at"][0].as_py())
        for key, features, longest in _views(self.spec):
            query = _range_frames(key, features, frame, start - longest, first)
            table = self.connection.sql(query).to_arrow_table()
            found |= {feature.name: table[feature.name] for feature in features}
        self.connection.unregister("batch")
        return int_table(
            self.spec, (found[feature.name].combine_chunks() for feature in self.spec.windows)
        )


class InPolars(InProcess):
    """A frame in memory; the same rows, by rolling sums over each key."""

    def __init__(self, spec: LineSpec, history: pa.Table) -> None:
        import polars

        self.polars: Any = polars
        self.spec = spec
        self.events = self._frame(history, 0)

    def _frame(self, table: pa.Table, first: int) -> Any:
        frame = self.polars.from_arrow(
            table.select(["knowledge_at", "event", "user_id", "item_id"])
        )
        return frame.with_columns(place=self.polars.int_range(first, first + len(frame)))

    def absorb(self, batch: pa.Table, asked: pa.Table) -> pa.Table:
        pl, first = self.polars, len(self.events)
        new = self._frame(batch, first)
        self.events.extend(new)
        found: dict[str, Any] = {}
        start = int(batch["knowledge_at"][0].as_py())
        for key, features, longest in _views(self.spec):
            answers = (
                self.events.lazy()
                .filter(pl.col("knowledge_at") >= start - longest)
                .join(new.lazy().select(key).unique(), on=key, how="semi", maintain_order="left")
                .with_columns(
                    (pl.col("event") == feature.event)
                    .cast(pl.Int64)
                    .rolling_sum_by("knowledge_at", f"{feature.window}i", closed="left")
                    .over(key)
                    .fill_null(0)
                    .alias(feature.name)
                    for feature in features
                )
                .filter((pl.col("place") >= first) & (pl.col("event") == "impression"))
                .sort("place")
                .collect()
            )
            found |= {feature.name: answers[feature.name].to_arrow() for feature in features}
        return int_table(self.spec, (found[feature.name] for feature in self.spec.windows))


class InSpark:
    """Cached frames; the same range frames in Spark SQL. Its first batch warms it up."""

    def __init__(self, spec: LineSpec, history: pa.Table, session: spark.SparkSession) -> None:
        self.spec, self.session = spec, session
        # without it Spark walks each range frame anew, which is quadratic on hot keys
        session.conf.set("spark.sql.window.segmentTree.enabled", "true")
        self.rows = 0
        self.events = self._frame(history)

    def cpu_s(self) -> float:
        """CPU seconds so far of this process and of the JVM."""
        return cpu_of_tree(os.getpid())

    def _frame(self, table: pa.Table) -> spark.DataFrame:
        first = self.rows
        self.rows += table.num_rows
        places = pa.array(np.arange(first, self.rows))
        names = ["knowledge_at", "event", "user_id", "item_id"]
        frame = self.session.createDataFrame(table.select(names).add_column(0, "place", places))
        frame = frame.cache()
        frame.count()
        return frame

    def absorb(self, batch: pa.Table, asked: pa.Table) -> pa.Table:
        first = self.rows
        new = self._frame(batch)
        self.events = self.events.union(new)
        new.createOrReplaceTempView("batch")
        self.events.createOrReplaceTempView("events")
        found: dict[str, Any] = {}
        start = int(batch["knowledge_at"][0].as_py())
        for key, features, longest in _views(self.spec):
            query = _range_frames(key, features, _frame_by_case, start - longest, first)
            table = spark.collect(self.session.sql(query))
            found |= {feature.name: table[feature.name] for feature in features}
        return int_table(
            self.spec, (found[feature.name].combine_chunks() for feature in self.spec.windows)
        )


def _frame_by_case(feature: WindowFeature) -> str:
    """`frame` without FILTER, which Spark has not for windows."""
    return (
        f"COALESCE(SUM(CASE WHEN event = '{feature.event}' THEN 1 ELSE 0 END) OVER ("
        f"PARTITION BY {', '.join(feature.key)} ORDER BY knowledge_at "
        f"RANGE BETWEEN {feature.window} PRECEDING AND 1 PRECEDING), 0) AS {feature.name}"
    )
