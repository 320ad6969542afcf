"""Feast's history over files: an offline store that reads with DuckDB and joins with one search.

Registered by name in `feature_store.yaml`. It is Feast's own DuckDB store in all but the
point-in-time join. That one joins every asked row with all earlier rows of its key and throws
all but the newest away; this one searches for the newest (`headrace.asof`). Answers differ here:

- rows of a key with equal times (and equal `created_timestamp`, where a source has one): the row
  that stands last wins, parts in the order of their names; Feast takes any of them;
- a join key map that renames some keys of a view joins by all keys; Feast by the renamed alone;
- a view without entities is joined by time alone; Feast looks for a column `__dummy_id`;
- rows come in the order of the entity frame, and its columns keep their Arrow types;
- the entity frame may be SQL, which DuckDB runs;
- a saved dataset holds on-demand features too;
- a batch written to a folder of parts becomes one more part;
- a source on S3 (`s3://bucket/folder`: its `*.parquet` in the order of their names) is read by
  fsspec.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import fsspec
import ibis
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.ibis import IbisRetrievalJob, offline_write_batch_ibis
from feast.infra.offline_stores.offline_store import RetrievalJob

from headrace.asof import BLOCK_ROWS, NEVER, AsOfJoin, Moments
from headrace.atomic import write_parquet
from headrace.errors import InputError
from headrace.store import history
from headrace.store.history import AskedView

# Feast shows every DeprecationWarning; this one is between ibis and DuckDB
warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_FIRST_US: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _US
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _US


class HeadraceDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Options of Feast's DuckDB store, under this store's name."""

    type: str = "headrace.store.offline.HeadraceDuckDBOfflineStore"


class HeadraceDuckDBOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's DuckDB offline store with a point-in-time join in bounded memory."""

    @staticmethod
    def get_historical_features(  # noqa: PLR0917 - Feast's signature
        config: Any,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **_between: datetime,
    ) -> RetrievalJob:
        """A job that joins when it is asked for rows. Raises InputError for what cannot join."""
        entities, at = _asked(entity_df)
        views = history.asked_views(
            feature_views, feature_refs, full_feature_names, entities.schema
        )
        repo, store = str(config.repo_path), config.offline_store

        def join() -> pa.Table:
            moments, joined = Moments.of(entities[at]), entities
            for view in views:
                found = _joined(view, repo, entities, moments, filter_by_created_timestamp)
                for name, column in found.items():
                    joined = joined.append_column(name, column)
            return joined

        return HistoryJob(
            join,
            on_demand_feature_views=history.requested_on_demand(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=history.metadata(
                feature_refs, entities.column_names, at, entities.select([at])
            ),
            data_source_writer=_write_data_source,
            staging_location=store.staging_location,
            staging_location_endpoint_override=store.staging_location_endpoint_override,
            repo_path=repo,
        )

    @staticmethod
    def offline_write_batch(
        config: Any,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows to a view's source: one more part of a folder, else as Feast does."""
        source = feature_view.batch_source
        folder = Path(source.path) if isinstance(source, FileSource) else None
        if folder is None or not folder.is_dir():
            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return

        def append(rows: Any, _source: Any, _repo: str) -> None:
            # sorts behind the parts of ticks (`b=…`) and those written before
            write_parquet(folder / f"written={time.time_ns():020d}.parquet", rows.to_pyarrow())

        offline_write_batch_ibis(config, feature_view, table, progress, append)


class HistoryJob(IbisRetrievalJob):  # type: ignore[misc]
    """The rows of a join: all that Feast's DuckDB job can do, without a detour over pandas."""

    def __init__(self, join: Callable[[], pa.Table], **options: Any) -> None:
        super().__init__(table=None, **options)
        self._join = join

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._join()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._join().to_pandas()
        return frame

    def persist(
        self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        self.table = ibis.memtable(self.to_arrow())
        super().persist(storage, allow_overwrite, timeout)

    def to_remote_storage(self) -> list[str]:
        self.table = ibis.memtable(self.to_arrow())
        return list(super().to_remote_storage())


def _asked(entity_df: pd.DataFrame | str | None) -> tuple[pa.Table, str]:
    """The entity rows and their time column."""
    if entity_df is None:
        raise InputError(
            "history is asked by rows: pass entity_df, a frame or DuckDB SQL with the join keys "
            "and event_timestamp (Feast's DuckDB store takes no start_date and end_date)"
        )
    if isinstance(entity_df, str):
        told: pa.Table = ibis.get_backend().con.sql(entity_df).to_arrow_table()
        return history.entity_table(told.to_pandas(types_mapper=pd.ArrowDtype))
    return history.entity_table(entity_df)


def _joined(
    view: AskedView, repo: str, entities: pa.Table, moments: Moments, as_known: bool
) -> dict[str, pa.ChunkedArray]:
    """Columns of the newest row for each entity row, by their names in the answer."""
    ttl_us = None if view.ttl is None else view.ttl // _US
    keys = [entities[name] for name in view.keys]
    join = AsOfJoin(moments, keys, ttl_us, as_known=as_known)
    rows = _rows(view, repo, moments, ttl_us, as_known)
    features = [f"feature{place}" for place in range(len(view.features))]
    with _reader(view, rows) as reader:
        for block in _blocks(reader):
            join.absorb(
                [block[f"key{place}"] for place in range(len(keys))],
                block["at"],
                block["created"] if view.created else None,
                block.select(features),
            )
        found = join.found(pa.schema([reader.schema.field(name) for name in features]))
    return dict(zip(view.features, found.columns, strict=True))


def _rows(
    view: AskedView, repo: str, moments: Moments, ttl_us: int | None, as_known: bool
) -> ibis.Table:
    """Rows of a source that any asked row may see, of the columns needed, in order of the parts.

    The bounds in time reach the statistics of Parquet files and row groups.
    """
    table = _read(view.source, repo)
    columns = view.renamed(table.columns)
    utc = ibis.expr.datatypes.Timestamp(timezone="UTC")
    at = table[columns[view.at]].cast(utc)
    asked_us = moments.at_us[moments.at_us > NEVER]
    first, last = (int(asked_us[0]), int(asked_us[-1])) if asked_us.size else (_LAST_US, _FIRST_US)
    selected = [at <= _literal(last)]
    if ttl_us is not None:
        selected.append(at >= _literal(first - ttl_us))
    read = {f"key{place}": table[columns[key]] for place, key in enumerate(view.keys.values())}
    read["at"] = at
    if view.created:
        read["created"] = table[columns[view.created]].cast(utc)
        if as_known:
            selected.append(read["created"].notnull())
    for place, feature in enumerate(view.features.values()):
        read[f"feature{place}"] = table[columns[feature]]
    return table.filter(*selected).select(**read)


def _read(source: Any, repo: str) -> ibis.Table:
    """A source's rows as Feast's DuckDB store reads them, but for S3.

    There DuckDB would fetch an extension from the network at run time; fsspec, with boto3's
    variables, needs none.
    """
    if not isinstance(source, FileSource) or not source.path.startswith("s3://"):
        return _read_data_source(source, repo)
    backend = ibis.get_backend()
    if not backend.con.filesystem_is_registered("s3"):
        # a listing that is kept would hide the parts that came since
        backend.con.register_filesystem(fsspec.filesystem("s3", use_listings_cache=False))
    files = source.path if source.path.endswith(".parquet") else f"{source.path}/*.parquet"
    name, quoted = ibis.util.gen_name("on_s3"), files.replace("'", "''")
    backend.con.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM read_parquet('{quoted}')")
    return backend.table(name)


def _reader(view: AskedView, rows: ibis.Table) -> pa.RecordBatchReader:
    if isinstance(view.source, FileSource):  # ibis 12 has no stream of its own from DuckDB 2
        connection = ibis.get_backend(rows).con
        # a long read would draw its progress into what a verb prints, JSON too
        connection.execute("SET enable_progress_bar = false")
        return connection.sql(ibis.to_sql(rows)).to_arrow_reader(BLOCK_ROWS)
    return rows.to_pyarrow().to_reader(max_chunksize=BLOCK_ROWS)


def _blocks(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Blocks of `BLOCK_ROWS` rows or less: DuckDB sends no batch that spans two files."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        rows += len(batch)
        if rows > BLOCK_ROWS and waiting:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], len(batch)
        waiting.append(batch)
    if waiting:
        yield pa.Table.from_batches(waiting)


def _literal(at_us: int) -> Any:
    return ibis.literal(_EPOCH + min(max(at_us, _FIRST_US), _LAST_US) * _US)
