"""A Feast repository with a view of each kind that Feast knows, and an oracle of its history."""

from __future__ import annotations

import inspect
import random
import shutil
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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
from feast.transformation.pandas_transformation import PandasTransformation
from feast.types import Int64, String

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
