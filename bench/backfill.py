"""Windows at every impression of a long past: the kernel by key ranges against DuckDB.

Each engine runs in a process of its own over the same Arrow file and leaves an Arrow file, so
that CPU seconds (all threads, reading and writing included) and peak memory are its own. The
peer is hand-written SQL with `RANGE BETWEEN w PRECEDING AND 1 PRECEDING`. Interleaved, medians.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
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
from headrace import backfill
from headrace.atomic import write_arrow
from headrace.declaration import LineSpec

CLICKS = 0.05
GIB = 2**30


def run(*, quick: bool = False) -> dict[str, Any]:
    """Backfill 10 M impressions (200 k when quick) with each engine and compare every value."""
    impressions, rounds = (200_000, 1) if quick else (10_000_000, 3)
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
                told = _in_a_process(engine, folder)
                seconds[engine].append(told["cpu_s"])
                peak[engine].append(told["peak_bytes"])
        ours, theirs = (_read(folder / f"{engine}.arrow") for engine in ENGINES)
        equal = ours.num_rows == asked and ours.equals(theirs)
    ratio = statistics.median(
        a / b for a, b in zip(seconds["kernel"], seconds["duckdb"], strict=True)
    )
    return {
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


def _in_a_process(engine: str, folder: Path) -> dict[str, Any]:
    """Run this file for one engine; the time to import is not counted, the memory is."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.backfill", engine, str(folder)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"backfill by {engine} failed: {done.stderr.strip()[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _kernel(spec: LineSpec, events: pa.Table) -> pa.Table:
    asked = events.select(["user_id", "item_id", "knowledge_at"]).filter(
        pc.equal(events["event"], "impression")
    )
    queries = asked.rename_columns(["user_id", "item_id", "request_at"])
    return backfill.features(spec, events, queries)


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


def _peak_bytes() -> int:
    # not ru_maxrss: a child's begins with what its parent held when it started it
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(told[1]) if told else 0


def _main(engine: str, folder: Path) -> None:
    started = time.process_time()
    answers = ENGINES[engine](six_windows(), _read(folder / "events.arrow"))
    write_arrow(folder / f"{engine}.arrow", answers)
    told = {
        "cpu_s": time.process_time() - started,
        "peak_bytes": _peak_bytes(),
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
