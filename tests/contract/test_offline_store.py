"""Our offline stores keep Feast's rules of history: each against an oracle that shares no code.

The suite is one for every store; a view of each kind that Feast knows is in the repository.
"""

from __future__ import annotations

from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import InputError
from tests.contract.history_repository import (
    RENAMED,
    T0,
    TTL_US,
    Repository,
    asked_rows,
    expected,
    frame,
    naive,
    repository,
    table,
    told,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:The spark data source API is an experimental"),
]


@pytest.fixture(
    scope="module", params=["duckdb", "s3", pytest.param("spark", marks=pytest.mark.spark)]
)
def repo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "s3":  # the folder is called like the bucket in which its parts end
        folder /= request.getfixturevalue("bucket").removeprefix("s3://")
        folder.mkdir()
    return repository(request.param, folder)


@pytest.mark.parametrize("as_known", [False, True])
def test_every_row_gets_what_a_patient_reader_finds(repo: Repository, as_known: bool) -> None:
    asked = asked_rows()
    found = told(
        repo.feast.get_historical_features(
            frame(asked),
            repo.feast.get_feature_service("all"),
            filter_by_created_timestamp=as_known,
        )
    )
    wanted = [expected(repo.rows, row, as_known) for row in asked]
    assert [{name: row[name] for name in wanted[0]} for row in found] == wanted
    for name in wanted[0]:  # the rows drawn reach many cases
        assert len({row[name] for row in wanted}) > 3
    assert [row["item"] for row in found] == [row["item"] for row in asked]


def test_rows_before_the_first_moment_asked_are_read_as_far_as_the_ttl(repo: Repository) -> None:
    asked = [{**row, "at": T0 + 30} for row in asked_rows()]
    found = told(repo.feast.get_historical_features(frame(asked), ["by_pair:price"]))
    wanted = [expected(repo.rows, row)["price"] for row in asked]
    assert [row["price"] for row in found] == wanted
    assert len(set(wanted)) > 3


def test_a_join_key_map_renames_one_key_and_keeps_the_other(repo: Repository) -> None:
    asked = asked_rows()
    job = repo.feast.get_historical_features(
        frame(asked), repo.feast.get_feature_service("mapped"), full_feature_names=True
    )
    keys = {"user": "user", "item": "other"}
    wanted = [naive(repo.rows["by_pair"], row, keys, ttl=TTL_US).get("price") for row in asked]
    assert [row["elsewhere__price"] for row in told(job)] == wanted
    assert len(set(wanted)) > 10


def test_full_names_carry_their_view(repo: Repository) -> None:
    asked = asked_rows()
    rows = frame(asked).astype({"event_timestamp": "datetime64[ns, UTC]"})  # as pandas has it
    job = repo.feast.get_historical_features(
        rows, ["by_user:note", "made:weighed"], full_feature_names=True
    )
    wanted = [expected(repo.rows, row) for row in asked]
    found = told(job)
    assert [row["by_user__note"] for row in found] == [row["note"] for row in wanted]
    assert [row["made__weighed"] for row in found] == [row["weighed"] for row in wanted]


def test_the_entity_rows_may_be_sql(repo: Repository) -> None:
    path = repo.folder / "asked.parquet"
    asked = asked_rows()
    pq.write_table(pa.Table.from_pandas(frame(asked)), path)
    quoted = f"parquet.`{path}`" if "Spark" in repo.feast.config.offline_store.type else f"'{path}'"
    job = repo.feast.get_historical_features(f"SELECT * FROM {quoted}", ["by_pair:price"])
    assert [row["price"] for row in told(job)] == [
        expected(repo.rows, row)["price"] for row in asked
    ]
    assert job.metadata.min_event_timestamp == pd.Timestamp(
        min(r["at"] for r in asked), unit="us", tz="UTC"
    )


def test_what_cannot_be_joined_is_refused_by_name(repo: Repository) -> None:
    ask = repo.feast.get_historical_features
    rows = frame(asked_rows()[:3])
    with pytest.raises(InputError, match="no column 'item', a join key of feature view 'by_pair'"):
        ask(rows.drop(columns="item"), ["by_pair:price"])
    with pytest.raises(InputError, match="column 'clicks', which is also a feature of 'by_user'"):
        ask(rows.assign(clicks=1), ["by_user:clicks"])
    with pytest.raises(InputError, match=r"where it is asked and .* cast the entity column"):
        ask(rows.assign(user=[1, 2, 3]), ["by_user:clicks"]).to_arrow()


def test_a_part_that_comes_to_a_bucket_later_is_seen(tmp_path: Path, bucket: str) -> None:
    folder = tmp_path / f"{bucket.removeprefix('s3://')}-later"
    files = fsspec.filesystem("s3", skip_instance_cache=True)  # as a process elsewhere
    folder.mkdir()
    files.mkdir(folder.name)
    made = repository("s3", folder)
    asked = frame([{"user": "new", "item": 1, "other": 1, "at": T0 + 99, "weight": 3}])
    for clicks in (None, 7):
        if clicks is not None:
            late = table(
                [{"at": T0, "user": "new", "clicks": clicks, "note": "x"}], RENAMED["by_user"]
            )
            with files.open(f"{folder.name}/by_user/b=00000099.parquet", "wb") as part:
                pq.write_table(late, part)
        found = told(made.feast.get_historical_features(asked, ["by_user:clicks"]))
        assert [row["clicks"] for row in found] == [clicks]
