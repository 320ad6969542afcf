"""Backfill: the kernel in process and inside Spark give the same bits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headrace.backfill.features import features
from headrace.backfill.interval import backfill
from headrace.backfill.steps import part_schema
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import event_schema
from headrace.labels.state import LabelState
from headrace.log.files import FileLog
from headrace.spark import require_java
from headrace.windows import WindowState

HOUR_US = 3_600_000_000
READS: dict[str, dict[str, object]] = {
    "count": {},
    "last_at": {},
    "distinct": {"column": "note"},
    "last": {"column": "note", "rank": 2},
}
JAVA_8 = "#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n"


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return LineSpec.model_validate(
        {
            "line": "toy",
            "columns": {"user": "string", "item": "int", "price": "int", "note": "string"},
            "source": {"kind": "live"},
            "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
            "windows": [
                {
                    "name": f"{'_'.join(key)}_{event}_{aggregate}",
                    "key": key,
                    "event": event,
                    "aggregate": aggregate,
                    **READS.get(aggregate, {"column": "price"}),
                    "window": "90s" if event == "click" else "10m",
                }
                for event in ("click", "impression")
                for key in (["user"], ["item"], ["user", "item"])
                for aggregate in ("count", "sum", "min", "max", "distinct", "last", "last_at")
            ],
            "request_features": [{"name": "user_id", "kind": "hash", "of": "user"}],
            "model": {"categorical": ["user_id"]},
        }
    )


def rows(count: int, seed: int) -> pa.Table:
    """Hot and cold keys, null parts, ties in time, an event nobody asks for."""
    rng = np.random.default_rng(seed)
    users = (rng.zipf(1.4, count) % 400).astype(str)
    items = rng.zipf(1.3, count) % 300
    return pa.table(
        {
            "knowledge_at": np.sort(rng.integers(0, 2_000, count)) * (HOUR_US // 2_000),
            "event": rng.choice(["impression", "click", "mark"], count, p=[0.8, 0.15, 0.05]),
            "value": np.ones(count, dtype=np.int64),
            "user": pa.array(users, mask=rng.random(count) < 0.05),
            "item": pa.array(items, mask=rng.random(count) < 0.05),
            "price": pa.array(rng.integers(-(2**40), 2**40, count), mask=rng.random(count) < 0.1),
            "note": pa.array(rng.choice(["x", "y", "z"], count), mask=rng.random(count) < 0.3),
        }
    )


def asked(count: int, seed: int) -> pa.Table:
    table = rows(count, seed)
    moments = np.random.default_rng(seed).permutation(table.column("knowledge_at").to_numpy())
    return table.select(["user", "item"]).append_column("request_at", pa.array(moments))


@pytest.mark.parametrize("range_rows", [1, 7, 900, 10**9])
def test_local_backfill_is_the_kernel_however_it_cuts_the_keys(
    spec: LineSpec, range_rows: int
) -> None:
    events, queries = rows(2_000, 1), asked(500, 2)
    state = WindowState(spec)
    for first in range(0, 2_000, 300):
        state.append(events.slice(first, 300))
    expected = state.values(queries, queries.column("request_at").to_numpy())
    assert features(spec, events, queries, range_rows=range_rows).equals(expected)
    assert not any(set(column.to_pylist()) == {0} for column in expected.columns)


def event_log(spec: LineSpec, home: Path, count: int, segment: int = 60_000) -> tuple[int, int]:
    """A log with ties in time, duplicates, early, late and orphaned clicks, marks; its stamps.

    A third of the impressions come again, clicks name impressions around them, stamps are shared
    by appends of 37 records.
    """
    rng = np.random.default_rng(5)
    event = rng.choice(["impression", "click", "mark"], count, p=[0.8, 0.17, 0.03])
    near = np.arange(count) - np.where(event == "click", rng.integers(-40, 3_000, count), 0)
    named = np.where(rng.random(count) < 0.03, near - rng.integers(1, 200, count), near)
    arrival = HOUR_US * 1_000 + np.arange(count) // 37 * (2 * HOUR_US * 37 // count)
    skew = rng.choice([0, 60_000_000, -3_000_000, HOUR_US * 2], count, p=[0.6, 0.3, 0.09, 0.01])
    columns = rows(count, 6)
    table = pa.table(
        {
            "event": event,
            "impression_id": np.where(event == "mark", "", np.char.add("i", named.astype(str))),
            "request_id": pa.nulls(count, pa.string()),
            "event_at": pa.array(arrival - skew).cast(pa.timestamp("us", tz="UTC")),
            "arrival_at": pa.array(arrival).cast(pa.timestamp("us", tz="UTC")),
            "value": (event == "click").astype(np.int64),
            **{name: columns[name] for name in spec.columns},
        }
    ).cast(event_schema(spec))
    log = FileLog(home / "log" / "events", event_schema(spec), writer=True)
    for first in range(0, count, segment):
        log.append(table.slice(first, segment))
    log.close()
    return int(arrival[0]), int(arrival[-1])


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_interval_holds_what_the_kernel_says_of_its_impressions(
    spec: LineSpec, tmp_path: Path
) -> None:
    first, last = event_log(spec, tmp_path, 20_000)
    whole = backfill(spec, tmp_path, tmp_path / "out", (first, last + 1))
    log = FileLog(tmp_path / "log" / "events", event_schema(spec))
    events = log.read(0, log.head).append_column("offset", pa.array(np.arange(log.head)))
    resolved = LabelState(spec).resolve(events)
    shown = resolved.filter(pc.equal(resolved["event"], "impression"))
    own = events.take(shown["offset"])
    asked = pc.min_element_wise(
        *(own[name].cast(pa.int64()) for name in ("event_at", "arrival_at"))
    )
    state = WindowState(spec)
    state.append(resolved)
    expected = state.values(shown, asked.to_numpy())
    found = pq.read_table(whole.folder)
    assert found.schema == part_schema(spec)
    assert found["impression_id"].to_pylist() == own["impression_id"].to_pylist()
    assert found.select(expected.column_names).equals(expected)
    assert found.num_rows == whole.rows < pc.sum(pc.equal(events["event"], "impression")).as_py()
    cuts = [first, first + HOUR_US // 3, first + HOUR_US, last + 1]
    pieces = [backfill(spec, tmp_path, tmp_path / "cut", pair) for pair in pairwise(cuts)]
    assert all(piece.rows for piece in pieces)
    again = pa.concat_tables([pq.read_table(piece.folder) for piece in pieces])
    assert again.equals(found)
    before = backfill(spec, tmp_path, tmp_path / "cut", (first - 9, first - 1))
    assert (before.rows, parts(before.folder)) == (0, {})


@pytest.mark.spark
def test_spark_over_a_million_events_leaves_the_bytes_of_this_process(
    spec: LineSpec, tmp_path: Path
) -> None:
    first, last = event_log(spec, tmp_path, 1_050_000)
    asked = ((first + last) // 2, last + 1)
    local = backfill(spec, tmp_path, tmp_path / "local", asked)
    spark = backfill(spec, tmp_path, tmp_path / "spark", asked, engine="spark")
    assert local.rows == spark.rows > 250_000
    assert len(parts(local.folder)) == 3
    assert parts(spark.folder) == parts(local.folder)
    values = pq.read_table(local.folder).select([feature.name for feature in spec.windows])
    assert all(len(column.unique()) > 1 for column in values.columns)


@pytest.mark.spark
def test_a_torn_segment_is_named_whatever_the_engine(spec: LineSpec, tmp_path: Path) -> None:
    _, last = event_log(spec, tmp_path, 1_000, segment=100)
    segment = min((tmp_path / "log" / "events").glob("*.arrow"))
    segment.write_bytes(segment.read_bytes()[:-100])
    for engine in ("local", "spark"):
        with pytest.raises(IntegrityError, match=rf"{segment.name}: not readable .*; restore it"):
            backfill(spec, tmp_path, tmp_path / "out", (last, last + 1), engine=engine)
    assert not any((tmp_path / "out").glob("*Z"))


def test_missing_or_old_java_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="apt-get install openjdk-17-jre-headless"):
        require_java(str(tmp_path / "java"))
    old = tmp_path / "java8"
    old.write_text(JAVA_8)
    old.chmod(0o755)
    with pytest.raises(EnvironmentFault, match=r"Java 17 is missing.*1\.8\.0_402"):
        require_java(str(old))
