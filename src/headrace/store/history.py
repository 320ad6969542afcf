"""What Feast asks of an offline store for history, told once for every engine that joins.

Imported by the offline stores alone, which Feast imports by name: this module imports Feast.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.transformation.python_transformation import PythonTransformation

from headrace.errors import InputError


@dataclass(frozen=True)
class AskedView:
    """What is read of a view's source, under the names that its field mapping gives."""

    name: str
    source: Any
    keys: dict[str, str]  # column of the entity frame -> join key of the view
    at: str
    created: str | None
    features: dict[str, str]  # name in the answer -> feature of the view
    ttl: timedelta | None

    @classmethod
    def of(cls, view: FeatureView, feature_refs: Sequence[str], full_names: bool) -> AskedView:
        """The features of `feature_refs` that are this view's, as Feast names them."""
        source = view.batch_source
        if source is None:
            raise InputError(
                f"feature view {view.name!r} has no batch source; give it one to read history"
            )
        mapping = dict(source.field_mapping)
        projection = view.projection
        asked = f"{projection.name_to_use()}:"
        names = [ref.removeprefix(asked) for ref in feature_refs if ref.startswith(asked)]
        prefix = f"{projection.name_alias or view.name}__" if full_names else ""
        created = source.created_timestamp_column
        return cls(
            name=projection.name_to_use(),
            source=source,
            keys={
                projection.join_key_map.get(column.name, column.name): column.name
                for column in view.entity_columns
            },
            at=mapping.get(source.timestamp_field, source.timestamp_field),
            created=mapping.get(created, created) or None,
            features={f"{prefix}{name}": name for name in names},
            ttl=view.ttl or None,
        )

    def renamed(self, columns: Iterable[str]) -> dict[str, str]:
        """Columns of the source by their names in the view. Raises InputError for one it lacks."""
        mapping = dict(self.source.field_mapping)
        names = {mapping.get(column, column): column for column in columns}
        needed = [*self.keys.values(), self.at, *self.features.values()]
        if self.created:
            needed.append(self.created)
        for name in needed:
            if name not in names:
                raise InputError(
                    f"the source of feature view {self.name!r} has no column {name!r} (it has "
                    f"{sorted(names)}); correct the view's schema or the source's field_mapping"
                )
        return {name: names[name] for name in needed}


def asked_views(
    views: Iterable[FeatureView], feature_refs: Sequence[str], full_names: bool, given: pa.Schema
) -> list[AskedView]:
    """The views asked of entity rows with the columns `given`.

    Raises InputError for a missing join key, or for a feature called like an entity column.
    """
    asked = [AskedView.of(view, feature_refs, full_names) for view in views]
    for view in asked:
        for column in view.keys:
            if column not in given.names:
                raise InputError(
                    f"the entity rows have no column {column!r}, a join key of feature view "
                    f"{view.name!r} (they have {given.names}); add it"
                )
        for name in view.features:
            if name in given.names:
                raise InputError(
                    f"the entity rows have a column {name!r}, which is also a feature of "
                    f"{view.name!r}; rename it or ask for full_feature_names"
                )
    return asked


def entity_table(frame: pd.DataFrame) -> tuple[pa.Table, str]:
    """The entity frame as Arrow and its time column; ArrowDtype columns are not copied."""
    at = event_timestamp(dict(zip(frame.columns, frame.dtypes, strict=True)))
    times = frame[at].infer_objects()
    if pd.api.types.is_string_dtype(times) or pd.api.types.is_object_dtype(times):
        frame = frame.assign(**{at: pd.to_datetime(times, utc=True)})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return table.replace_schema_metadata(None), at


def event_timestamp(types: dict[str, Any]) -> str:
    """The column that says when each row is asked, by Feast's rule: by name, or the only time."""
    return str(offline_utils.infer_event_timestamp_from_entity_df(types))


def metadata(
    feature_refs: list[str], columns: Iterable[str], at: str, times: pa.Table
) -> RetrievalMetadata:
    """What Feast records of a retrieval: features, keys, first and last of the `times` asked."""
    bounds = [pc.min_max(column) for column in times.columns]
    return RetrievalMetadata(
        features=feature_refs,
        keys=[name for name in columns if name != at],
        min_event_timestamp=bounds[0]["min"].as_py(),
        max_event_timestamp=bounds[-1]["max"].as_py(),
    )


def requested_on_demand(
    feature_refs: Sequence[str], project: str, registry: Any
) -> list[OnDemandFeatureView]:
    """The on-demand views asked; those of a line compute on Arrow columns, without Python rows.

    Feast hands a function in mode `python` one list for each column: at a million rows making
    the lists costs several times the join. `feature_rows.request_inputs`, the body of every
    line's on-demand view, takes Arrow columns as well and computes the same bits.
    """
    views = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
    return [_on_arrow(view) if "headrace_line" in view.tags else view for view in views]


def _on_arrow(view: OnDemandFeatureView) -> OnDemandFeatureView:
    made = view.feature_transformation
    view = copy.copy(view)
    view.feature_transformation = _ArrowTransformation(
        udf=made.udf, udf_string=made.udf_string, name=view.name
    )
    return view


class _ArrowTransformation(PythonTransformation):  # type: ignore[misc]
    def transform_arrow(self, pa_table: pa.Table, features: Any) -> pa.Table:
        columns = dict(zip(pa_table.column_names, pa_table.columns, strict=True))
        return pa.table(self.udf(columns))
