"""Feast's history on Spark: an offline store that joins by one window over each key's rows.

Registered by name in `feature_store.yaml` when `HEADRACE_OFFLINE_STORE=spark`. Feast's own Spark
store, which this one extends, is right only for small answers: it collects them through pandas,
where an integer column with a null becomes floats; it names a row by its key parts pasted together,
so ("1", "11") and ("11", "1") are one; it returns a row twice for two rows of equal time; and it
joins each key's rows with each other. Here asked and stored rows of a key are sorted into one
sequence, and each asked row takes the last stored row before it. Answers are those of
`headrace.store.offline`; sources that are not files are read by Spark, ties in them fall anyhow.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import BatchFeatureView, FeatureView
from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
    SparkOfflineStore,
    SparkOfflineStoreConfig,
    SparkRetrievalJob,
)
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as Spark's own documentation calls it

from headrace import spark
from headrace.errors import InputError
from headrace.store import history, sources_spark
from headrace.store.history import AskedView


class HeadraceSparkOfflineStoreConfig(SparkOfflineStoreConfig):  # type: ignore[misc]
    """Options of Feast's Spark store, and the master of a session that has to be started."""

    type: str = "headrace.store.offline_spark.HeadraceSparkOfflineStore"
    master: str = "local[2]"


def _session(config: Any) -> SparkSession:
    """The session of this process; one that is started here ends with it."""
    active = SparkSession.getActiveSession()
    if active is None:
        stack = ExitStack()
        started = spark.session(config.offline_store.master, jars=sources_spark.jars())
        active = stack.enter_context(started)
        atexit.register(stack.close)
    return active


def _in_session(method: Callable[..., Any]) -> Any:
    """Feast's method in our session: one that Feast starts listens on every interface."""

    @wraps(method)
    def run(config: Any, *arguments: Any, **options: Any) -> Any:
        session = _session(config)
        source = options.get("data_source")
        if isinstance(source, FileSource | SparkSource):
            options["data_source"] = sources_spark.reached(session, source, config.repo_path)
        return method(config, *arguments, **options)

    return staticmethod(run)


class HeadraceSparkOfflineStore(SparkOfflineStore):  # type: ignore[misc]
    """Feast's Spark offline store with another point-in-time join."""

    pull_latest_from_table_or_query = _in_session(SparkOfflineStore.pull_latest_from_table_or_query)
    pull_all_from_table_or_query = _in_session(SparkOfflineStore.pull_all_from_table_or_query)
    offline_write_batch = _in_session(SparkOfflineStore.offline_write_batch)

    @staticmethod
    def get_historical_features(  # noqa: PLR0917 - Feast's signature
        config: Any,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **between: Any,
    ) -> RetrievalJob:
        """A job that joins when it is asked for rows. Raises InputError for what cannot join.

        Rows come in any order. Batch feature views and a range without entity rows are left to
        Feast.
        """
        session = _session(config)
        if entity_df is None or any(isinstance(view, BatchFeatureView) for view in feature_views):
            return SparkOfflineStore.get_historical_features(
                config,
                feature_views,
                feature_refs,
                entity_df,
                registry,
                project,
                full_feature_names,
                filter_by_created_timestamp,
                **between,
            )
        asked, metadata, at = _asked(session, entity_df, feature_refs)
        joined = asked
        given = pa.schema([(name, pa.null()) for name in asked.columns])
        for view in history.asked_views(feature_views, feature_refs, full_feature_names, given):
            stored = _stored(session, view, config.repo_path, metadata)
            joined = _joined(view, joined, at, stored, as_known=filter_by_created_timestamp)
        return SparkHistoryJob(
            joined,
            session,
            on_demand_feature_views=history.requested_on_demand(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=metadata,
            config=config,
        )


class SparkHistoryJob(SparkRetrievalJob):  # type: ignore[misc]
    """The rows of a join, collected as Arrow: integers stay integers."""

    def __init__(self, joined: DataFrame, session: SparkSession, **options: Any) -> None:
        super().__init__(session, "", **options)
        self._joined = joined

    def to_spark_df(self) -> DataFrame:
        return self._joined

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if self._should_use_staging_for_arrow():
            return self._to_arrow_via_staging()
        return self._joined.toArrow()


def _asked(
    session: SparkSession, entity_df: pd.DataFrame | DataFrame | str, feature_refs: list[str]
) -> tuple[DataFrame, Any, str]:
    """The entity rows in Spark, what Feast records of them, and their time column."""
    if isinstance(entity_df, pd.DataFrame):
        table, at = history.entity_table(entity_df)
        frame, times = session.createDataFrame(table), table.select([at])
    else:
        frame = session.sql(entity_df) if isinstance(entity_df, str) else entity_df
        at = history.event_timestamp(dict(frame.limit(0).toPandas().dtypes))
        moment = _column(at).cast("timestamp")
        times = frame.select(F.min(moment), F.max(moment)).toArrow()
    return frame, history.metadata(feature_refs, frame.columns, at, times), at


def _stored(session: SparkSession, view: AskedView, repo: Any, metadata: Any) -> DataFrame:
    """A source's rows that an asked row may see: keys, `at`, `created`, `place` and `found`."""
    source = sources_spark.reached(session, view.source, repo)
    files = source.path and source.file_format == "parquet" and source.table_format is None
    if files:
        with spark.opened(f"feature view {view.name!r}: {source.path}"):
            rows = session.read.option("pathGlobFilter", "*.parquet").parquet(source.path)
        place = F.struct("_metadata.file_path", "_metadata.row_index")
    else:
        rows = session.sql(f"SELECT * FROM {source.get_table_query_string()}")
        place = F.lit(None)
    columns = view.renamed(rows.columns)
    at = _column(columns[view.at]).cast("timestamp")
    created = _column(columns[view.created]).cast("timestamp") if view.created else F.lit(None)
    features = [
        _column(columns[name]).alias(f"f{i}") for i, name in enumerate(view.features.values())
    ]
    keys = [_column(columns[name]).alias(f"key{i}") for i, name in enumerate(view.keys.values())]
    selected = rows.select(
        *keys,
        at.alias("at"),
        created.cast("timestamp").alias("created"),
        place.alias("place"),
        F.struct(at.alias("at"), *features).alias("found"),
    ).dropna(subset=["at", *(f"key{i}" for i in range(len(keys)))])
    if metadata.max_event_timestamp is None:
        return selected.limit(0)
    bounded = selected.where(F.col("at") <= F.lit(metadata.max_event_timestamp))
    if view.ttl is not None:
        bounded = bounded.where(F.col("at") >= F.lit(metadata.min_event_timestamp - view.ttl))
    return bounded


def _joined(
    view: AskedView, asked: DataFrame, at: str, stored: DataFrame, *, as_known: bool
) -> DataFrame:
    """The asked rows with the columns of the newest stored row, found in one ordered pass."""
    questions = asked.select(
        *(_column(name).alias(f"key{i}") for i, name in enumerate(view.keys)),
        _column(at).cast("timestamp").alias("at"),
        F.struct(*map(_column, asked.columns)).alias("asked"),
    )
    _check_keys(view, questions, stored)
    known = F.col("at")
    if as_known and view.created:
        stored = stored.where(F.col("created").isNotNull())
        known = F.greatest("at", "created")
    is_asked = F.col("asked").isNotNull()
    order = F.struct("at", "created", "place")
    window = (
        Window.partitionBy(*(f"key{i}" for i in range(len(view.keys))))
        .orderBy(F.when(is_asked, F.col("at")).otherwise(known), is_asked, order)
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    newest = F.last("found", ignorenulls=True).over(window)
    if as_known and view.created:  # what came last need not be the newest
        newest = F.max_by("found", F.when(~is_asked, order)).over(window)
    rows = stored.unionByName(questions, allowMissingColumns=True)
    rows = rows.withColumn("newest", newest).where(is_asked)
    fits = F.lit(True)
    if view.ttl is not None:
        fits = F.col("newest.at") >= F.col("at") - F.lit(view.ttl)
    features = [
        F.when(fits, F.col(f"newest.f{i}")).alias(name) for i, name in enumerate(view.features)
    ]
    return rows.select("asked.*", *features)


def _check_keys(view: AskedView, questions: DataFrame, stored: DataFrame) -> None:
    """Spark would cast text to numbers, or fail while it runs."""
    for place, name in enumerate(view.keys):
        kinds = [frame.schema[f"key{place}"].dataType for frame in (questions, stored)]
        if len({kind.typeName() == "string" for kind in kinds}) > 1:
            raise InputError(
                f"{name!r} is {kinds[0].simpleString()} where it is asked and "
                f"{kinds[1].simpleString()} in the source of feature view {view.name!r}; cast the "
                "entity column to the stored type"
            )


def _column(name: str) -> Column:
    return F.col("`" + name.replace("`", "``") + "`")
