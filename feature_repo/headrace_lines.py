"""Ordinary Feast objects built from `lines/*.yaml`: nothing here is written by hand for a line.

For a line `flights`, version 1: entities `flights_<column>` for the columns that windows use
as keys, one push source and one feature view for each key tuple (`flights_by_origin_dest`), one
on-demand view `flights_inputs` (the model inputs) and the feature service `flights_v1`.

Each view also carries its row's exact knowledge time, `<view>__at` (int64 us), as a feature:
Feast's SQLite store keeps event timestamps in whole seconds, and historical retrieval returns
none at all, but parity has to recompute a row at the very tick that wrote it.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.transformation.python_transformation import PythonTransformation
from feast.transformation.udf_rehydrate import rehydrate_udf_from_source
from feast.types import Float64, Int64, String

from headrace.declaration import LineSpec, WindowFeature
from headrace.feature_rows import line_tags, request_fields
from headrace.settings import Settings, load_lines, load_settings

_TYPES = {"string": String, "int": Int64, "float": Float64}
_KEY_TYPES = {"string": ValueType.STRING, "int": ValueType.INT64}


def objects(settings: Settings) -> dict[str, Any]:
    """All Feast objects of all declared lines, by a name that is unique in this module."""
    built: dict[str, Any] = {}
    for spec in load_lines(settings.lines_dir).values():
        for thing in line_objects(settings, spec):
            kind = type(thing).__name__.lower()
            built[f"{kind}_{thing.name}"] = thing
    return built


def line_objects(settings: Settings, spec: LineSpec) -> list[Any]:
    """Entities, push sources, views, the on-demand view and the feature service of one line."""
    columns = sorted({column for feature in spec.windows for column in feature.key})
    entities = {
        column: Entity(
            name=f"{spec.line}_{column}",
            join_keys=[column],
            value_type=_KEY_TYPES[spec.columns[column]],
        )
        for column in columns
    }
    views = [
        _view(settings, spec, name, features, entities) for name, features in spec.views.items()
    ]
    inputs = _inputs(spec, views)
    service = FeatureService(
        name=spec.feature_service,
        features=[*views, inputs],
        tags=line_tags(spec),
        description=spec.description,
    )
    sources = [view.stream_source for view in views]
    return [*entities.values(), *sources, *views, inputs, service]


def _view(
    settings: Settings,
    spec: LineSpec,
    name: str,
    features: tuple[WindowFeature, ...],
    entities: dict[str, Entity],
) -> FeatureView:
    key = features[0].key
    parts = _parts(settings, f"{name}_parts", settings.line_home(spec.line) / "features" / name)
    return FeatureView(
        name=name,
        entities=[entities[column] for column in key],
        schema=[
            *(Field(name=column, dtype=_TYPES[spec.columns[column]]) for column in key),
            Field(name=f"{name}__at", dtype=Int64),
            *(Field(name=feature.name, dtype=Int64) for feature in features),
        ],
        source=PushSource(name=f"{name}_push", batch_source=parts),
        ttl=None if spec.feature_ttl is None else timedelta(microseconds=spec.feature_ttl),
        online=True,
    )


def _parts(settings: Settings, name: str, folder: Path) -> FileSource | SparkSource:
    """The folder of a view's parts, as the offline store in the settings reads it."""
    if settings.offline_store == "spark":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The spark data source API is an experimental")
            return SparkSource(
                name=name,
                path=str(folder),
                file_format="parquet",
                timestamp_field="event_timestamp",
            )
    return FileSource(
        name=name,
        path=str(folder),
        timestamp_field="event_timestamp",
        file_format=ParquetFormat(),
    )


def _inputs(spec: LineSpec, views: list[FeatureView]) -> OnDemandFeatureView:
    """The on-demand view: `headrace.requests.transform` over request fields and window features.

    Feast rebuilds the function from its source text, without the closure, in every process that
    loads the registry. So the text itself carries the line, as JSON. Mode `python` rather than
    `pandas`: pandas turns an integer column with one null into floats, and ids have 63 bits.
    """
    name = f"{spec.line}_inputs"
    source = (
        f"def {name}(columns):\n"
        "    from headrace.feature_rows import request_inputs\n"
        f"    return request_inputs({spec.model_dump_json(exclude_unset=True)!r}, columns)\n"
    )
    schema = {
        "id": Int64,
        "number": Float64,
    }
    return OnDemandFeatureView(
        name=name,
        sources=[
            *views,
            RequestSource(
                name=f"{spec.line}_request",
                schema=[
                    Field(name=field, dtype=_TYPES[kind])
                    for field, kind in request_fields(spec).items()
                ],
            ),
        ],
        schema=[
            Field(name=feature.name, dtype=schema[feature.produces])
            for feature in spec.request_features
        ],
        feature_transformation=PythonTransformation(
            udf=rehydrate_udf_from_source(source, preferred_name=name), udf_string=source, name=name
        ),
        mode="python",
        tags=line_tags(spec),
    )


globals().update(objects(load_settings()))  # Feast collects what it finds in the module
