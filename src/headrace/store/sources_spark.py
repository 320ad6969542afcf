"""Sources of views as Spark reads them: also those that are declared for files, and those on S3.

Imported by the offline store on Spark alone: this module imports Feast.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Final

from feast.data_format import ParquetFormat
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.file_source import FileSource
from pyspark.sql import SparkSession

from headrace import s3a, spark
from headrace.errors import InputError
from headrace.settings import load_settings

_ON_S3: Final = re.compile(r"s3a?://(?P<bucket>[^/]+)/?(?P<key>.*?)/?")


def jars() -> list[Path]:
    """What a session gets that may read S3: the connector's jars where they are installed."""
    return sorted(load_settings().s3a_jars.glob("*.jar"))


def reached(session: SparkSession, source: Any, repo: Path | None) -> SparkSource:
    """The source as one of Spark's, and where it lies on S3, the session told how to get there.

    A `FileSource` of Parquet files is the same files to Spark; its path may be relative to the
    repository, `repo`. Raises `InputError` for others, `EnvironmentFault` where S3 does not
    answer, refuses the credentials, or holds nothing there.
    """
    found = _of_spark(source, repo)
    on_s3 = _ON_S3.fullmatch(found.path or "")
    if on_s3 is not None and found.table_format is None:
        named = f"source {found.name!r} at {found.path}"
        spark.configure(session, s3a.options(named))
        key = on_s3["key"]
        folder = f"{key}/" if key and not key.endswith(".parquet") else key
        s3a.check(on_s3["bucket"], folder, named)
    return found


def _of_spark(source: Any, repo: Path | None) -> SparkSource:
    if isinstance(source, SparkSource):
        return source
    parquet = (type(None), ParquetFormat)
    if not isinstance(source, FileSource) or not isinstance(source.file_format, parquet):
        raise InputError(
            f"source {source.name!r} is a {type(source).__name__}, which Spark cannot read; "
            "declare a SparkSource or a FileSource of Parquet files, or unset "
            "HEADRACE_OFFLINE_STORE"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The spark data source API is an experimental")
        return SparkSource(
            name=source.name,
            path=str(FileSource.get_uri_for_file_path(repo, source.path)),
            file_format="parquet",
            timestamp_field=source.timestamp_field,
            created_timestamp_column=source.created_timestamp_column,
            field_mapping=dict(source.field_mapping),
        )
