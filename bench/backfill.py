"""Windows at every impression of a long past: the kernel by key ranges against DuckDB.

Each engine runs in a process of its own over the same Arrow file and leaves an Arrow file, so
that CPU seconds (all threads, reading and writing included) and peak memory are its own. The
peer is hand-written SQL with `RANGE BETWEEN w PRECEDING AND 1 PRECEDING`. One round:
it takes minutes, and the ratio is far from its goal.

What Spark adds is measured on an event log: `headrace backfill` of all its impressions by either
engine, CPU seconds of the whole tree of processes (JVM and workers), and the same of a log of
1,000 events, which costs Spark little but its start.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench._measure import (
    DAY_US,
    at_most,
    equality,
    frame,
    int_table,
    make_events,
    six_windows,
)
from bench._process import in_a_process, python, read_arrow, tell
from headrace.atomic import write_arrow
from headrace.backfill.features import features
from headrace.backfill.interval import Engine, backfill
from headrace.declaration import LineSpec
from headrace.events import TIME, event_schema
from headrace.log.files import FileLog

CLICKS = 0.05
GIB = 2**30
START_US = 1_700_000_000_000_000


def run(*, quick: bool = False) -> dict[str, Any]:
    """Backfill 10 M impressions (200 k when quick) with each engine and compare every value."""
    impressions, rounds = (200_000, 1) if quick else (10_000_000, 1)  # minutes each
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    peak: dict[str, list[int]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = make_events(round(impressions / (1 - CLICKS)), 10 * DAY_US, CLICKS)
        asked = pc.sum(pc.equal(events["event"], "impression")).as_py()
        write_arrow(folder / "events.arrow", events)
        del events
        for _ in range(rounds):
            for engine in ENGINES:
                told = in_a_process("bench.backfill", engine, folder)
                seconds[engine].append(told["cpu_s"])
                peak[engine].append(told["peak_bytes"])
        ours, theirs = (read_arrow(folder / f"{engine}.arrow") for engine in ENGINES)
        equal = ours.num_rows == asked and ours.equals(theirs)
    ratio = statistics.median(
        a / b for a, b in zip(seconds["kernel"], seconds["duckdb"], strict=True)
    )
    result = {
        "what": "backfill, six windows on three keys at every impression",
        "rows": asked,
        "peers": {"duckdb": duckdb.__version__},
        "cpu_s": seconds,
        "peak_gib": {name: max(found) / GIB for name, found in peak.items()},
        "claims": [
            equality("bit-equal to DuckDB", equal),
            at_most("CPU of the kernel over DuckDB", ratio, "x", 0.5),
            at_most("peak memory of the kernel", max(peak["kernel"]) / GIB, "GiB", 3.0),
        ],
    }
    if not quick:
        result["peers"]["spark"] = version("pyspark")
        result["spark_cpu_s"], claims = _overhead_of_spark(rounds)
        result["claims"] += claims
    return result


def _overhead_of_spark(rounds: int) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """The verb by both engines over a log of 1 M impressions; and Spark over next to nothing."""
    seconds: dict[str, list[float]] = {"local": [], "spark": [], "spark start": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_log(folder / "small", 1_000)
        _write_log(folder / "large", round(1_000_000 / (1 - CLICKS)))
        for _ in range(rounds):
            for engine, size in (("local", "large"), ("spark", "large"), ("spark", "small")):
                arguments = ("-m", "bench.backfill", f"over_log_{engine}", str(folder / size))
                taken = python(*arguments)[1]
                seconds[engine if size == "large" else "spark start"].append(taken)
        local, other = (
            {path.name: path.read_bytes() for path in (folder / "large" / engine).glob("*/*")}
            for engine in ("local", "spark")
        )
    started = statistics.median(seconds["spark start"])
    ratio = statistics.median(
        (a - started) / b for a, b in zip(seconds["spark"], seconds["local"], strict=True)
    )
    return seconds, [
        equality("Spark leaves the same bytes", bool(local) and local == other),
        at_most("CPU under Spark without its start over in process, 1 M rows", ratio, "x", 6.0),
        at_most("CPU of the start of Spark and its workers", started, "s", 40.0),
    ]


def _write_log(home: Path, rows: int) -> None:
    """An event log: each click names the impression that came a hundred records before it."""
    events, spec = make_events(rows, DAY_US, CLICKS), six_windows()
    at = pa.array(events["knowledge_at"].to_numpy() + START_US).cast(TIME)
    place = np.arange(rows)
    named = np.where(events["event"].to_numpy() == "click", place - 100, place)
    columns = {name: events[name] for name in ("event", "value", "user_id", "item_id")}
    columns |= {"impression_id": pa.array(np.char.add("i", named.astype(str)))}
    columns |= {"request_id": pa.nulls(rows, pa.string()), "event_at": at, "arrival_at": at}
    schema = event_schema(spec)
    table = pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)
    log = FileLog(home / "log" / "events", schema, writer=True)
    for first in range(0, rows, 100_000):
        log.append(table.slice(first, 100_000))
    log.close()


def _kernel(spec: LineSpec, events: pa.Table) -> pa.Table:
    asked = events.select(["user_id", "item_id", "knowledge_at"]).filter(
        pc.equal(events["event"], "impression")
    )
    queries = asked.rename_columns(["user_id", "item_id", "request_at"])
    return features(spec, events, queries)


def _range_frames(spec: LineSpec, events: pa.Table) -> pa.Table:
    selected = ", ".join(map(frame, spec.windows))
    with duckdb.connect() as connection:
        connection.register("events", events)
        table = connection.sql(
            f"WITH numbered AS (SELECT *, row_number() OVER () AS place FROM events), "
            f"framed AS (SELECT place, event, {selected} FROM numbered) "
            f"SELECT * EXCLUDE (place, event) FROM framed "
            f"WHERE event = 'impression' ORDER BY place"
        ).to_arrow_table()
    return int_table(spec, (table[feature.name].combine_chunks() for feature in spec.windows))


ENGINES = {"kernel": _kernel, "duckdb": _range_frames}


def _main(engine: str, folder: Path) -> None:
    if engine.startswith("over_log_"):
        by: Engine = "spark" if engine.endswith("spark") else "local"
        interval = (START_US, START_US + 2 * DAY_US)
        backfill(six_windows(), folder, folder / by, interval, engine=by)
        return
    told = tell(
        engine, folder, lambda: ENGINES[engine](six_windows(), read_arrow(folder / "events.arrow"))
    )
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
