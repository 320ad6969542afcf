"""History on Spark: what was served is read again, bit for bit, and as DuckDB reads it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from headrace.declaration import MISSING, LineSpec
from headrace.errors import DeclarationError
from headrace.events import ARROW_TYPES, TIME
from headrace.feature_rows import feature_part
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.store import Store

T0 = 1_750_000_000_123_457
SECOND_US = 1_000_000
pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:The spark data source API is an experimental"),
]


def environ(home: Path, **given: str) -> dict[str, str]:
    return {
        "HEADRACE_HOME": str(home),
        "HEADRACE_LINES_DIR": str(home / "declared"),
        "HEADRACE_FEATURE_REPO": str(PROJECT / "feature_repo"),
    } | given


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "declared").mkdir()
    shutil.copy(PROJECT / "lines" / "coupons.yaml", tmp_path / "declared")
    return load_settings(environ(tmp_path))


def column(rng: np.random.Generator, kind: str, count: int, missing: float) -> pa.Array:
    drawn = rng.integers(0, 12, count) + (2**62 if kind == "int" else 0)
    values = drawn.astype(str) if kind == "string" else drawn
    return pa.array(values, mask=rng.random(count) < missing).cast(ARROW_TYPES[kind])


def written(spec: LineSpec, view: str, rng: np.random.Generator, at_us: int) -> pa.Table:
    """A tick's rows of a view: some keys, each once, with values that a float would round."""
    features = spec.views[view]
    keys = {name: column(rng, spec.columns[name], 9, 0) for name in features[0].key}
    rows = pa.table(keys).group_by(list(keys)).aggregate([])
    count = rows.num_rows
    rows = rows.append_column("event_timestamp", pa.array([at_us] * count).cast(TIME))
    for feature in features:
        values = rng.integers(2**61, 2**62, count)
        if feature.empty:
            values = np.where(rng.random(count) < 0.3, MISSING, values)
        rows = rows.append_column(feature.name, pa.array(values))
    return feature_part(spec, view, rows)


@pytest.mark.spark
def test_history_on_spark_is_history_on_duckdb_and_what_was_served(settings: Settings) -> None:
    spec, rng = find_line(settings, "coupons"), np.random.default_rng(2)
    local = Store(settings)
    local.apply()
    asked, served = [], []
    for tick in range(5):
        at_us = T0 + tick * SECOND_US
        for view in spec.views:
            part = written(spec, view, rng, at_us)
            folder = settings.line_home(spec.line) / "features" / view
            pq.write_table(part, folder / f"b={tick:08d}.parquet")
            local.push(spec, view, part)
        asked.append(
            pa.table(
                {name: column(rng, kind, 40, 0.1) for name, kind in spec.columns.items()}
            ).append_column("request_at", pa.array(at_us + rng.integers(0, SECOND_US, 40)))
        )
        served.append(local.read_online(spec, asked[-1]))
    order = rng.permutation(200)
    questions = pa.concat_tables(asked).take(order)
    answers = pa.concat_tables(served).take(order)

    cluster = Store(replace(settings, offline_store="spark"))
    cluster.apply()
    histories = [cluster.read_history(spec, questions)]
    local.apply()
    histories.append(local.read_history(spec, questions))
    for history in histories:
        assert history.schema.equals(answers.schema)
        for name in answers.column_names:
            ours, theirs = history[name], answers[name]
            if pa.types.is_floating(ours.type):
                ours, theirs = (pa.array(each.to_numpy().view("int64")) for each in (ours, theirs))
            assert ours.to_pylist() == theirs.to_pylist(), name
    for feature in spec.windows:
        assert len(set(answers[feature.name].to_pylist())) > 10


def test_the_setting_chooses_the_store_and_its_sources(settings: Settings) -> None:
    Store(replace(settings, offline_store="spark")).apply()
    path = settings.home / "feast" / "feature_store.yaml"
    rendered = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert rendered["offline_store"] == {
        "type": "headrace.store.offline_spark.HeadraceSparkOfflineStore"
    }
    assert rendered["registry"]["path"] == str(settings.home / "feast" / "registry.db")
    Store(settings).apply()
    rendered = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert rendered["offline_store"] == {
        "type": "headrace.store.offline.HeadraceDuckDBOfflineStore"
    }


def test_another_offline_store_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"HEADRACE_OFFLINE_STORE='dask'.*duckdb, spark"):
        load_settings(environ(tmp_path, HEADRACE_OFFLINE_STORE="dask"))
