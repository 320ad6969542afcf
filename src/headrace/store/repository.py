"""Feast: apply the lines, push window features, read them online and in history.

Feast takes five seconds to import, so it is imported inside the functions that need it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sqlite3
import string
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.events import TIME
from headrace.feature_rows import (
    entity_columns,
    feature_part,
    feature_schema,
    line_tags,
    part_schema,
    typed,
)
from headrace.settings import Settings, load_lines

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

_ROW: Final = "row__"


class Store:
    """The features of all lines in one Feast repository below `settings.home`.

    Safe to share between threads: calls are serialised, because Feast keeps one SQLite
    connection for each store and a read on it would see a write's open transaction. Between
    processes SQLite's write-ahead log lets the server read while the ingest process writes.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._feast: FeatureStore | None = None
        self._services: dict[str, FeatureService] = {}

    def apply(self) -> None:
        """Register every line with Feast and prepare its folders; safe to repeat.

        Writes `<home>/feast/feature_store.yaml`, so that `FeatureStore(repo_path=<home>/feast)`
        needs no environment, and an empty part for each view, so that history can be asked
        before the first tick. Raises `DeclarationError` for a wrong line.
        """
        folder = self._settings.home / "feast"
        folder.mkdir(parents=True, exist_ok=True)
        template = self._settings.feature_repo / "feature_store.yaml"
        text = string.Template(template.read_text(encoding="utf-8")).safe_substitute(
            HEADRACE_HOME=self._settings.home
        )
        if self._settings.offline_store == "spark":
            overlay = template.with_name("offline_spark.yaml").read_text(encoding="utf-8")
            config = yaml.safe_load(text) | yaml.safe_load(overlay)
            text = yaml.safe_dump(config, sort_keys=False)
        _replace(
            folder / "feature_store.yaml",
            lambda partial: partial.write_text(text, encoding="utf-8"),
        )
        for spec in load_lines(self._settings.lines_dir).values():
            for view in spec.views:
                _write_seed(self._settings.line_home(spec.line) / "features" / view, spec, view)
        objects = list(self._definitions().objects(self._settings).values())
        with self._lock:
            self._feast = None
            self._services.clear()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "On demand feature view is an experimental")
                self._store().apply(objects)

    def push(self, spec: LineSpec, view: str, rows: pa.Table) -> None:
        """Write rows to the online store: key columns, `event_timestamp` and window features.

        A key's row is replaced as a whole, whatever its timestamp: push ticks in order.
        """
        if rows.num_rows == 0:
            return
        frame = feature_part(spec, view, rows).to_pandas()
        with self._lock:
            self._store().push(f"{view}_push", frame)

    def read_online(self, spec: LineSpec, asked: pa.Table) -> pa.Table:
        """Features of each row now, in one Feast call.

        `asked` holds the declared columns and `request_at` (int64 us). Returns, row for row,
        `<view>__at` (timestamp us UTC; null where the key was never written), the window
        features (int64, their `empty` where never written) and the model inputs.
        """
        if asked.num_rows == 0:
            return feature_schema(spec).empty_table()
        rows = {name: column.to_pylist() for name, column in entity_columns(spec, asked).items()}
        with self._lock:
            response = self._store().get_online_features(
                features=self._service(spec), entity_rows=rows
            )
        names = {name: i for i, name in enumerate(response.proto.metadata.feature_names.val)}
        results = response.proto.results
        columns = {}
        for field in feature_schema(spec):
            values = results[names[field.name]].values
            if pa.types.is_floating(field.type):  # Feast sends NaN as null
                columns[field.name] = [
                    v.double_val if v.HasField("double_val") else math.nan for v in values
                ]
            else:
                columns[field.name] = pa.array(
                    [v.int64_val if v.HasField("int64_val") else None for v in values], pa.int64()
                )
        return typed(spec, pa.table(columns))

    def read_history(self, spec: LineSpec, asked: pa.Table) -> pa.Table:
        """Features of each row as they stood at its `request_at`, by Feast's point-in-time join.

        Same columns as `read_online`. A row written exactly at `request_at` is seen: it was
        computed from records strictly before that time.
        """
        if asked.num_rows == 0:
            return feature_schema(spec).empty_table()
        import pandas as pd

        frame = pa.table(
            entity_columns(spec, asked)
            | {
                "event_timestamp": asked["request_at"].cast(pa.int64()).cast(TIME),
                _ROW: pa.array(np.arange(asked.num_rows)),
            }
        ).to_pandas(types_mapper=pd.ArrowDtype)  # Feast wants pandas; Arrow stays underneath
        with self._lock:
            job = self._store().get_historical_features(
                entity_df=frame, features=self._service(spec)
            )
            found = job.to_arrow()
        if found.num_rows != asked.num_rows:
            raise InputError(
                f"Feast returned {found.num_rows} rows for {asked.num_rows} asked of "
                f"{spec.feature_service}; its parts hold rows that it cannot join"
            )
        if not np.array_equal(found[_ROW].to_numpy(), np.arange(asked.num_rows)):
            found = found.sort_by(_ROW)  # Feast promises no order
        return typed(spec, found)

    def _store(self) -> FeatureStore:
        if self._feast is None:
            folder = self._settings.home / "feast"
            if not (folder / "feature_store.yaml").exists():
                raise EnvironmentFault(
                    f"{folder} holds no feature_store.yaml; start the stack once (`headrace up`)"
                )
            from feast import FeatureStore

            self._feast = FeatureStore(repo_path=str(folder))
            _share_sqlite(self._feast.config.online_store)
        return self._feast

    def _service(self, spec: LineSpec) -> FeatureService:
        known = self._services.get(spec.feature_service)
        if known is not None:
            return known
        from feast.errors import FeatureServiceNotFoundException

        try:
            service = self._store().get_feature_service(spec.feature_service)
        except FeatureServiceNotFoundException:
            raise EnvironmentFault(
                f"feature service {spec.feature_service!r} is not registered in "
                f"{self._settings.home / 'feast'}; restart the stack (`headrace up`)"
            ) from None
        if dict(service.tags) != line_tags(spec):
            raise EnvironmentFault(
                f"feature service {spec.feature_service!r} was registered from another "
                f"declaration of line {spec.line!r} or by another version of headrace "
                f"({dict(service.tags)}); restart the stack (`headrace up`)"
            )
        self._services[spec.feature_service] = service
        return service

    def _definitions(self) -> Any:
        path = self._settings.feature_repo / "headrace_lines.py"
        found = importlib.util.spec_from_file_location("headrace_lines", path)
        if found is None or found.loader is None or not path.exists():
            raise EnvironmentFault(f"{path} is missing; set HEADRACE_FEATURE_REPO to feature_repo/")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module


def _write_seed(folder: Path, spec: LineSpec, view: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    empty = part_schema(spec, view).empty_table()
    _replace(folder / "seed.parquet", lambda partial: pq.write_table(empty, partial))


def _share_sqlite(online_store: Any) -> None:
    """Turn the write-ahead log on (the file remembers it): readers never wait for the writer."""
    if online_store.type == "sqlite":
        connection = sqlite3.connect(online_store.path)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
