"""Our offline stores keep Feast's rules of history: each against an oracle that shares no code.

The suite is one for every store; a view of each kind that Feast knows is in the repository.
"""

from __future__ import annotations

import inspect
import random
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.transformation.pandas_transformation import PandasTransformation
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Int64, String

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.settings import Settings
from headrace.store import history

TIME = pa.timestamp("us", tz="UTC")
T0 = 1_750_000_000_000_000
TTL_US = 5
BIG = 2**62 + 1  # a float64 would round it
STORES = {
    "duckdb": "headrace.store.offline.HeadraceDuckDBOfflineStore",
    "s3": "headrace.store.offline.HeadraceDuckDBOfflineStore",
    "spark": "headrace.store.offline_spark.HeadraceSparkOfflineStore",
    "feast": "duckdb",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:The spark data source API is an experimental"),
    pytest.mark.filterwarnings("ignore:Saving dataset is an experimental"),
    pytest.mark.filterwarnings("ignore:Retrieving datasets is an experimental"),
]
Row = dict[str, Any]


@dataclass(frozen=True)
class Repository:
    """A Feast repository and the rows behind its views in the order written."""

    feast: FeatureStore
    rows: dict[str, list[Row]]
    folder: Path


def drawn_rows(rng: random.Random) -> dict[str, list[Row]]:
    """Rows by view: few keys and moments, so that ties are many; some keys and values missing."""

    def row(at: int, **columns: Any) -> Row:
        return {"at": T0 + at, **columns}

    users, items = ["a", "b", "1", "11", None], [1, 11, BIG, None]
    return {
        "by_user": [
            row(rng.randrange(40), user=rng.choice(users), clicks=place, note=rng.choice("xyz"))
            for place in range(120)
        ],
        "by_pair": [
            row(
                rng.randrange(60),
                user=rng.choice(users),
                item=rng.choice(items),
                made=T0 + place * 7 % 150,  # no two alike
                price=rng.choice([None, BIG + place]),
            )
            for place in range(150)
        ],
        "overall": [row(rng.randrange(40), total=place) for place in range(30)],
    }


def table(rows: list[Row], renamed: dict[str, str]) -> pa.Table:
    """Rows under the names that the source has."""
    kinds = {"at": TIME, "made": TIME, "user": pa.string(), "note": pa.string()}
    columns = {}
    for name in rows[0]:
        kind = kinds.get(name, pa.int64())
        values = pa.array([row[name] for row in rows], pa.int64() if kind == TIME else kind)
        columns[renamed.get(name, name)] = values.cast(kind)
    return pa.table(columns)


RENAMED = {
    "by_user": {"at": "event_timestamp"},
    "by_pair": {"user": "u", "at": "seen", "price": "p"},
    "overall": {"at": "event_timestamp"},
}


def source(engine: str, name: str, folder: Path) -> Any:
    mapping = {"u": "user", "p": "price"} if name == "by_pair" else {}
    common: dict[str, Any] = {
        "name": f"{name}_parts",
        "path": str(folder) if engine != "s3" else f"s3://{folder.parent.name}/{name}",
        "timestamp_field": "seen" if name == "by_pair" else "event_timestamp",
        "created_timestamp_column": "made" if name == "by_pair" else "",
        "field_mapping": mapping,
    }
    if engine == "spark":
        return SparkSource(**common, file_format="parquet")
    return FileSource(**common, file_format=ParquetFormat())


def definitions(engine: str, folder: Path) -> list[Any]:
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    item = Entity(name="item", join_keys=["item"], value_type=ValueType.INT64)

    def view(name: str, entities: list[Entity], schema: dict[str, Any], ttl: int = 0) -> Any:
        return FeatureView(
            name=name,
            entities=entities,
            schema=[Field(name=field, dtype=kind) for field, kind in schema.items()],
            source=source(engine, name, folder / name),
            ttl=timedelta(microseconds=ttl),
        )

    by_user = view("by_user", [user], {"user": String, "clicks": Int64, "note": String})
    by_pair = view("by_pair", [user, item], {"user": String, "item": Int64, "price": Int64}, TTL_US)
    overall = view("overall", [], {"total": Int64})

    def doubled(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"weighed": frame["clicks"].fillna(-1) * frame["weight"]})

    text = inspect.getsource(doubled)  # a pickled function would be refused
    made = OnDemandFeatureView(
        name="made",
        sources=[by_user, RequestSource(name="asked", schema=[Field(name="weight", dtype=Int64)])],
        schema=[Field(name="weighed", dtype=Int64)],
        feature_transformation=PandasTransformation(udf=doubled, udf_string=text),
        mode="pandas",
    )
    elsewhere = by_pair.with_name("elsewhere").with_join_key_map({"item": "other"})
    service = FeatureService(name="all", features=[by_user, by_pair, overall, made])
    mapped = FeatureService(name="mapped", features=[elsewhere])
    return [user, item, by_user, by_pair, overall, made, service, mapped]


def repository(engine: str, folder: Path) -> Repository:
    rows = drawn_rows(random.Random(11))
    for name, found in rows.items():
        (folder / name).mkdir()
        for part, first in enumerate(range(0, len(found), 40)):  # parts overlap in time
            written = table(found[first : first + 40], RENAMED[name])
            pq.write_table(written, folder / name / f"b={part:08d}.parquet")
        if engine == "s3":
            fsspec.filesystem("s3").put(str(folder / name), f"s3://{folder.name}/{name}", True)
            shutil.rmtree(folder / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = FeatureStore(config=config(engine, folder))
        store.apply(definitions(engine, folder))
    return Repository(store, rows, folder)


def config(engine: str, folder: Path) -> RepoConfig:
    return RepoConfig(
        project="history",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": STORES[engine]},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


@pytest.fixture(
    scope="module", params=["duckdb", "s3", pytest.param("spark", marks=pytest.mark.spark)]
)
def repo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "s3":  # the folder is called like the bucket in which its parts end
        folder /= request.getfixturevalue("bucket").removeprefix("s3://")
        folder.mkdir()
    return repository(request.param, folder)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Repository]:
    yield repository("duckdb", tmp_path)


def asked_rows() -> list[Row]:
    """Out of order, some twice, at ties and at both sides of a TTL's edge; some keys unknown."""
    rng = random.Random(5)
    rows = [
        {
            "user": rng.choice(["a", "b", "1", "11", "nobody", None]),
            "item": rng.choice([1, 11, BIG, 7, None]),
            "other": rng.choice([1, 11, BIG]),
            "at": T0 + rng.randrange(-2, 70),
            "weight": 3,
        }
        for _ in range(400)
    ]
    return rows + rows[:50]


def frame(rows: list[Row]) -> pd.DataFrame:
    """The asked rows as pandas; Arrow underneath keeps nulls and 63 bits."""
    asked = pa.table(
        {
            "user": pa.array([row["user"] for row in rows], pa.string()),
            "item": pa.array([row["item"] for row in rows], pa.int64()),
            "other": pa.array([row["other"] for row in rows], pa.int64()),
            "event_timestamp": pa.array([row["at"] for row in rows], pa.int64()).cast(TIME),
            "weight": pa.array([row["weight"] for row in rows], pa.int64()),
            "row": pa.array(range(len(rows)), pa.int64()),
        }
    )
    return asked.to_pandas(types_mapper=pd.ArrowDtype)


def naive(rows: list[Row], asked: Row, keys: dict[str, str], **rules: Any) -> Row:
    """The newest row of the asked keys, looked for among all; `keys`: stored to asked name."""
    ttl, as_known = rules.get("ttl"), rules.get("as_known", False)
    best: tuple[int, int, int] | None = None
    for place, row in enumerate(rows):
        same = all(row[k] is not None and row[k] == asked[name] for k, name in keys.items())
        late = row["at"] > asked["at"] or (as_known and row.get("made", 0) > asked["at"])
        old = ttl is not None and row["at"] < asked["at"] - ttl
        if same and not late and not old:
            best = max(best or (0, 0, 0), (row["at"], row.get("made", 0), place))
    return {} if best is None else rows[best[2]]


PAIR = {"user": "user", "item": "item"}


def expected(rows: dict[str, list[Row]], asked: Row, as_known: bool = False) -> Row:
    user = naive(rows["by_user"], asked, {"user": "user"})
    pair = naive(rows["by_pair"], asked, PAIR, ttl=TTL_US, as_known=as_known)
    clicks = user.get("clicks")
    return {
        "clicks": clicks,
        "note": user.get("note"),
        "price": pair.get("price"),
        "total": naive(rows["overall"], asked, {}).get("total"),
        "weighed": 3 * (-1 if clicks is None else clicks),
    }


def told(job: Any) -> list[Row]:
    found: list[Row] = job.to_arrow().sort_by("row").to_pylist()
    return found


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


def test_feast_s_own_store_agrees_where_it_is_right(local: Repository) -> None:
    """No ties: it takes any row of a tie. Ties of `by_pair` are broken by creation."""
    asked = asked_rows()
    rows = frame(asked).astype({"event_timestamp": "datetime64[us, UTC]"})
    stock = FeatureStore(config=config("feast", local.folder))
    for as_known in (False, True):
        jobs = [
            store.get_historical_features(
                rows, ["by_pair:price"], filter_by_created_timestamp=as_known
            )
            for store in (local.feast, stock)
        ]
        ours, theirs = (job.to_arrow().sort_by("row").select(["row", "price"]) for job in jobs)
        assert ours.equals(theirs)
        assert ours["price"].null_count not in (0, ours.num_rows)


def test_rows_keep_their_order_and_types_and_none_asked_gives_none(local: Repository) -> None:
    asked = frame(asked_rows())
    found = local.feast.get_historical_features(asked, ["by_user:clicks"]).to_arrow()
    assert found.drop_columns("clicks").equals(
        pa.Table.from_pandas(asked).replace_schema_metadata(None)
    )
    nothing = local.feast.get_historical_features(asked[:0], ["by_user:clicks"]).to_arrow()
    assert nothing.schema.equals(found.schema)
    assert nothing.num_rows == 0


def test_times_without_a_zone_as_text_and_absent_ones(local: Repository) -> None:
    at = pd.Timestamp(T0 + 39, unit="us")
    for times in ([at, pd.NaT], [at.tz_localize("UTC"), None], [str(at), None]):
        rows = pd.DataFrame({"user": ["a", "a"], "event_timestamp": times})
        found = local.feast.get_historical_features(rows, ["by_user:clicks"]).to_arrow()
        wanted = naive(local.rows["by_user"], {"user": "a", "at": T0 + 39}, {"user": "user"})
        assert found["clicks"].to_pylist() == [wanted["clicks"], None]


def test_a_written_batch_is_one_more_part_and_wins_a_tie(local: Repository) -> None:
    newest = max(local.rows["by_user"], key=lambda row: row["at"])
    batch = table([{**newest, "user": "a", "clicks": BIG}], RENAMED["by_user"])
    for clicks in (BIG, BIG + 1):
        written = batch.set_column(2, "clicks", pa.array([clicks]))
        local.feast.write_to_offline_store("by_user", written.to_pandas())
    asked = frame([{"user": "a", "item": 1, "other": 1, "at": newest["at"], "weight": 1}])
    found = local.feast.get_historical_features(asked, ["by_user:clicks"]).to_arrow()
    assert found["clicks"].to_pylist() == [BIG + 1]
    assert len(list((local.folder / "by_user").iterdir())) == 5


def test_a_saved_dataset_holds_on_demand_features_too(local: Repository) -> None:
    asked = asked_rows()
    job = local.feast.get_historical_features(frame(asked), ["by_user:clicks", "made:weighed"])
    storage = SavedDatasetFileStorage(path=str(local.folder / "saved.parquet"))
    saved = local.feast.create_saved_dataset(from_=job, name="saved", storage=storage)
    again = saved.to_df()
    wanted = sorted(expected(local.rows, row)["weighed"] for row in asked)
    assert sorted(again["weighed"].tolist()) == wanted


def test_a_line_s_inputs_are_computed_on_arrow_columns_with_the_same_bits(
    applied: Settings, shop: LineSpec
) -> None:
    feast = FeatureStore(repo_path=str(applied.home / "feast"))
    refs = [f"shop_inputs:{feature.name}" for feature in shop.request_features]
    views = history.requested_on_demand(refs, feast.project, feast.registry)
    ours = views[0].feature_transformation
    assert type(ours).transform_arrow is not PythonTransformation.transform_arrow
    columns = {
        "user_id__request": pa.array(["a", None, "b"]),
        "item__request": pa.array([BIG, 3, None]),
        "price": pa.array([0.5, None, 20.0]),
        "request_at": pa.array([T0, T0 + 1, T0 + 2]),
    } | {feature.name: pa.array([BIG, None, 1]) for feature in shop.windows}
    asked = pa.table(columns)
    theirs = PythonTransformation.transform_arrow(ours, asked, views[0].features)
    found = ours.transform_arrow(asked, views[0].features)
    assert found.column_names == theirs.column_names
    for name in found.column_names:
        assert found[name].to_numpy().tobytes() == theirs[name].to_numpy().tobytes(), name


def test_history_without_rows_and_a_source_without_its_column_are_refused(
    local: Repository,
) -> None:
    with pytest.raises(InputError, match="pass entity_df"):
        local.feast.get_historical_features(
            features=["by_user:clicks"], start_date=pd.Timestamp(T0, unit="us")
        )
    for part in (local.folder / "by_user").iterdir():
        pq.write_table(pq.read_table(part).drop_columns("note"), part)
    with pytest.raises(InputError, match="source of feature view 'by_user' has no column 'note'"):
        local.feast.get_historical_features(frame(asked_rows()), ["by_user:note"]).to_arrow()
