"""Backfill: the kernel in process and inside Spark give the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace import backfill, spark
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
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
    assert backfill.features(spec, events, queries, range_rows=range_rows).equals(expected)
    assert not any(set(column.to_pylist()) == {0} for column in expected.columns)


@pytest.mark.spark
def test_spark_equals_local_bit_by_bit(spec: LineSpec) -> None:
    events, queries = rows(20_000, 3), asked(5_000, 4)
    local = backfill.features(spec, events, queries)
    assert backfill.features(spec, events, queries, engine="spark").equals(local)


def test_missing_or_old_java_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="apt-get install openjdk-17-jre-headless"):
        spark.require_java(str(tmp_path / "java"))
    old = tmp_path / "java8"
    old.write_text(JAVA_8)
    old.chmod(0o755)
    with pytest.raises(EnvironmentFault, match=r"Java 17 is missing.*1\.8\.0_402"):
        spark.require_java(str(old))
