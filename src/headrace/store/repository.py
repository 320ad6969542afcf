"""Feast: apply the lines, push window features, read them online and in history.

Feast takes five seconds to import, so it is imported inside the functions that need it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.events import TIME, input_fields
from headrace.feature_rows import (
    MISSING_KEY,
    entity_columns,
    feature_part,
    feature_schema,
    key_values,
    line_tags,
    part_schema,
    typed,
)
from headrace.raw import Candidates
from headrace.settings import Settings, load_lines
from headrace.store.config import online_faults, open_config, registry_faults, render
from headrace.store.latest import Distinct, Found, Keys, assemble, nothing
from headrace.store.pickles import refuse_pickles
from headrace.store.pushed import Holding

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore, FeatureView

_ROW: Final = "row__"


class Store:
    """The features of all lines in one Feast repository below `settings.home`.

    Safe to share between threads: calls are serialised, because Feast keeps one SQLite
    connection for each store and a read on it would see a write's open transaction. Between
    processes SQLite's write-ahead log lets the server read while the ingest process writes.
    One process pushes, any number reads. All raise `EnvironmentFault` while the store is away.
    """

    def __init__(self, settings: Settings, timeout_s: float | None = None) -> None:
        """`timeout_s`: how long each answer of the online store is waited for (default: 5)."""
        self._settings = settings
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._feast: FeatureStore | None = None
        self._services: dict[str, FeatureService] = {}
        self._views: dict[str, FeatureView] = {}
        self._marks_us: dict[str, int | None] = {}

    def apply(self) -> None:
        """Register every line with Feast and prepare its folders; safe to repeat.

        Writes `<home>/feast/feature_store.yaml`, so that `FeatureStore(repo_path=<home>/feast)`
        needs no environment (with Redis, HEADRACE_ONLINE_STORE; with a registry elsewhere,
        HEADRACE_REGISTRY), and an empty part for each view, so that history can be asked before
        the first tick. Raises `DeclarationError` for a wrong line, `EnvironmentFault` where Redis
        or the registry does not answer.
        """
        folder = self._settings.home / "feast"
        folder.mkdir(parents=True, exist_ok=True)
        text = render(self._settings)
        _replace(
            folder / "feature_store.yaml",
            lambda partial: partial.write_text(text, encoding="utf-8"),
        )
        for spec in load_lines(self._settings.lines_dir).values():
            for view in spec.views:
                _write_seed(self._settings.line_home(spec.line) / "features" / view, spec, view)
        objects = list(self._definitions().objects(self._settings).values())
        with self._lock, online_faults(self._settings), registry_faults(self._settings):
            self._feast = None
            self._services.clear()
            self._views.clear()
            self._online().check(self._store().config)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "On demand feature view is an experimental")
                self._store().apply(objects)

    def push(self, spec: LineSpec, view: str, rows: pa.Table) -> None:
        """Write rows to the online store: key columns, `event_timestamp` and window features.

        A key's row is replaced as a whole, whatever its timestamp: push ticks in order. Raises
        `EnvironmentFault` when the store has lost what this process or one before it pushed.
        """
        if rows.num_rows == 0:
            return
        part = feature_part(spec, view, rows)
        with self._lock, online_faults(self._settings):
            self._service(spec)  # registered from this declaration
            config = self._store().config
            if view not in self._marks_us:
                self._marks_us[view] = self._online().mark_us(config, view)
            self._marks_us[view] = self._online().write_rows(
                config, self._view(view), part, self._marks_us[view]
            )

    def mark_us(self, view: str) -> int | None:
        """Time of the newest row pushed to a view (knowledge time, us); None where none was."""
        with self._lock, online_faults(self._settings):
            self._marks_us[view] = self._online().mark_us(self._store().config, view)
            return self._marks_us[view]

    def clear(self, view: str) -> None:
        """Delete a view's rows from the online store."""
        with self._lock, online_faults(self._settings):
            self._online().clear(self._store().config, self._view(view))
            self._marks_us[view] = None

    def read_online(self, spec: LineSpec, asked: pa.Table) -> pa.Table:
        """Features of each row now: the line's feature service, read in one go from our stores.

        `asked` holds the declared columns and `request_at` (int64 us). Returns, row for row,
        `<view>__at` (timestamp us UTC; null where the key was never written), the window
        features (int64, their `empty` where never written) and the model inputs.
        """
        if asked.num_rows == 0:
            return feature_schema(spec).empty_table()
        return assemble(spec, asked, self.look_up(spec, asked))

    def look_up(
        self,
        spec: LineSpec,
        asked: pa.Table | Candidates,
        meanwhile: Callable[[], None] = nothing,
    ) -> Found:
        """What the online store holds for these requests, at least one: `assemble` makes features.

        `meanwhile` is called, once at least, while the store is at work. Raises
        `EnvironmentFault` where the store does not answer or the line is not registered.
        """
        columns = {name: Distinct.of(of) for name, of in key_values(spec, asked).items()}
        with self._lock, online_faults(self._settings):
            self._service(spec)  # registered from this declaration
            from headrace.store.encode import keys_of  # Feast is heavy; it is there by now

            declared = spec.views
            names = list(declared)
            views = [self._view(name) for name in names]
            parts = [tuple(sorted(features[0].key)) for features in declared.values()]
            keys = [
                Keys.of([columns[name] for name in each], partial(keys_of, each)) for each in parts
            ]
            wanted = [(view, held.different) for view, held in zip(views, keys, strict=True)]
            marks, rows = self._online().read_rows(self._store().config, wanted, meanwhile)
        return Found(
            dict(zip(names, marks, strict=True)),
            dict(zip(names, zip(keys, rows, strict=True), strict=True)),
        )

    def holdings(self) -> dict[str, Holding]:
        """What this process holds of each view in memory; of a store that holds nothing, {}."""
        found: dict[str, Holding] = {} if self._feast is None else self._online().holdings()
        return found

    def read_by_feast(self, spec: LineSpec, asked: pa.Table) -> pa.Table:
        """What `read_online` gives, by Feast's own `get_online_features`."""
        if asked.num_rows == 0:
            return feature_schema(spec).empty_table()
        rows = {name: column.to_pylist() for name, column in entity_columns(spec, asked).items()}
        with self._lock, online_faults(self._settings):
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
        with self._lock:
            service = self._service(spec)
        found = self._point_in_time(entity_columns(spec, asked), asked["request_at"], service)
        return typed(spec, found)

    def read_view_history(self, spec: LineSpec, view: str, asked: pa.Table) -> pa.Table:
        """One view's rows as of each row's `request_at`, by Feast's point-in-time join.

        `asked` holds the view's key columns and `request_at` (int64 us). Returns, row for row,
        `at` (int64 us; 0 where the key had no row) and the window features (`empty` there).
        """
        features = spec.views[view]
        names = [f"{view}__at", *(feature.name for feature in features)]
        entities = {
            name: pc.fill_null(asked[name], MISSING_KEY[spec.columns[name]])
            for name in features[0].key
        }
        found = self._point_in_time(entities, asked["request_at"], [f"{view}:{n}" for n in names])
        empty = [0, *(feature.empty for feature in features)]
        return pa.table(
            [
                pc.fill_null(found[name].cast(pa.int64()), value)
                for name, value in zip(names, empty, strict=True)
            ],
            names=["at", *names[1:]],
        )

    def transform(self, spec: LineSpec, asked: pa.Table) -> pa.Table:
        """Model inputs by the registered on-demand view, as reading online and history call it.

        `asked` holds the declared columns, `request_at` (int64 us) and the window features.
        """
        with self._lock, registry_faults(self._settings):
            self._service(spec)  # refuses a registry of another declaration
            view = self._store().get_on_demand_feature_view(f"{spec.line}_inputs")
        given = pa.table(
            entity_columns(spec, asked) | {f.name: asked[f.name] for f in spec.windows}
        )
        found = view.feature_transformation.transform_arrow(given, view.features)
        fields = input_fields(spec)
        return pa.table([found[f.name].cast(f.type) for f in fields], schema=pa.schema(fields))

    def _point_in_time(
        self,
        entities: dict[str, pa.ChunkedArray],
        at_us: pa.ChunkedArray,
        features: FeatureService | list[str],
    ) -> pa.Table:
        """What Feast's historical retrieval gives for these entity rows, in their order."""
        import pandas as pd

        frame = pa.table(
            entities
            | {
                "event_timestamp": at_us.cast(pa.int64()).cast(TIME),
                _ROW: pa.array(np.arange(len(at_us))),
            }
        ).to_pandas(types_mapper=pd.ArrowDtype)  # Feast wants pandas; Arrow stays underneath
        with self._lock, registry_faults(self._settings):
            job = self._store().get_historical_features(entity_df=frame, features=features)
            found = job.to_arrow()
        if found.num_rows != len(at_us):
            raise InputError(
                f"Feast returned {found.num_rows} rows for {len(at_us)} asked; the parts of "
                "history hold rows that it cannot join"
            )
        if not np.array_equal(found[_ROW].to_numpy(), np.arange(len(at_us))):
            found = found.sort_by(_ROW)  # Feast promises no order
        return found

    def _store(self) -> FeatureStore:
        if self._feast is None:
            from feast import FeatureStore

            refuse_pickles()
            config = open_config(self._settings, self._timeout_s)
            with registry_faults(self._settings):
                self._feast = FeatureStore(config=config)
        return self._feast

    def _online(self) -> Any:
        return self._store().provider.online_store

    def _view(self, name: str) -> FeatureView:
        if name not in self._views:
            store = self._store()
            with registry_faults(self._settings):
                self._views[name] = store.get_feature_view(name)
        return self._views[name]

    def _service(self, spec: LineSpec) -> FeatureService:
        known = self._services.get(spec.feature_service)
        if known is not None:
            return known
        from feast.errors import FeatureServiceNotFoundException

        store = self._store()
        try:
            with registry_faults(self._settings):
                service = store.get_feature_service(spec.feature_service)
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


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
