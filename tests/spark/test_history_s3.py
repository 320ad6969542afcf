"""Views declared once over files on S3: Spark finds what DuckDB finds, and what an oracle finds.

Run as a script it is the process that asks on Spark: S3A's jars join a process's first session.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from headrace.settings import PROJECT
from tests.contract.history_repository import T0, asked_rows, config, expected, frame, repository
from tests.s3_server import s3_bucket, s3_server
from tests.spark import s3a_jars, streaming

NAME = "headrace-history"
FEATURES = ["by_user:clicks", "by_pair:price"]
pytestmark = [
    pytest.mark.spark,
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder called like the bucket in which the rows of its repository lie."""
    s3a_jars.installed()
    (tmp_path / NAME).mkdir()
    with s3_server() as server, s3_bucket(server, NAME):
        yield tmp_path / NAME


def ask_on_spark(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.spark.test_history_s3", str(folder)],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=240,
        env=os.environ | {"JDK_JAVA_OPTIONS": streaming.QUICK_START},
    )  # fmt: skip


def test_spark_reads_the_files_of_a_bucket_as_duckdb_does(folder: Path) -> None:
    made = repository("s3", folder)
    asked = asked_rows()
    rows = pa.Table.from_pandas(frame(asked))
    pq.write_table(rows, folder / "asked.parquet")
    ended = ask_on_spark(folder)
    assert ended.returncode == 0, ended.stderr
    wanted = [
        {name: expected(made.rows, row)[name] for name in ("clicks", "price")} for row in asked
    ]
    answers = {
        "duckdb": made.feast.get_historical_features(frame(asked), FEATURES).to_arrow(),
        "spark": pq.read_table(folder / "found.parquet"),
    }
    for engine, answer in answers.items():
        found = answer.sort_by("row").select(["clicks", "price"]).to_pylist()
        assert found == wanted, engine
    pulled = pq.read_table(folder / "pulled.parquet").to_pylist()
    assert sorted(row["clicks"] for row in pulled) == [r["clicks"] for r in made.rows["by_user"]]


def main(folder: Path) -> None:
    """Ask history for the rows of `asked.parquet`, and for all rows of a view."""
    from headrace.store.offline_spark import HeadraceSparkOfflineStore  # slow to import

    store = FeatureStore(config=config("spark", folder))
    rows = pq.read_table(folder / "asked.parquet").to_pandas(types_mapper=pd.ArrowDtype)
    found = store.get_historical_features(rows, FEATURES).to_arrow()
    pq.write_table(found, folder / "found.parquet")
    at = datetime.fromtimestamp(T0 // 10**6, UTC)
    pulled = HeadraceSparkOfflineStore.pull_all_from_table_or_query(
        config=store.config,
        data_source=store.get_feature_view("by_user").batch_source,
        join_key_columns=["user"],
        feature_name_columns=["clicks"],
        timestamp_field="event_timestamp",
        start_date=at - timedelta(days=1),
        end_date=at + timedelta(days=1),
    )
    pq.write_table(pulled.to_arrow(), folder / "pulled.parquet")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
