"""Files that arrive in a folder or in a bucket of S3, as a frame with one JSON column.

Every row is one event as the collector takes it. A file must appear whole. In a folder: write it
under a name that begins with a dot, or outside of the folder, then rename it. On S3 every object
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace import s3a
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.settings import Settings
from headrace.spark import configure, opened

if TYPE_CHECKING:
    from headrace.spark import DataFrame, SparkSession

_PLACE: Final = ("file_modification_time", "file_path", "file_block_start")
_TYPES: Final = {"string": "STRING", "int": "BIGINT", "float": "DOUBLE"}
FILES_AT_ONCE: Final = 100


@dataclass(frozen=True)
class Files:
    """A folder in which `*.jsonl` and `*.parquet` files arrive.

    A line of a `.jsonl` file is an event. A Parquet file has columns of the event log without
    stamp (`event_at` a timestamp); those that it lacks are null. A batch has up to `at_once`
    files of each kind; its events come by time, then path of their files, each file in its order.
    """

    folder: Path
    at_once: int = FILES_AT_ONCE

    def __str__(self) -> str:
        return f"files:{self.folder}"

    def jars(self, _settings: Settings) -> list[Path]:
        """Jars that Spark needs for it: none."""
        return []

    def check(self, _settings: Settings) -> None:
        """Raise `InputError` when there is no such folder."""
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder; make it, then move event files in")

    def frame(self, spark: SparkSession, spec: LineSpec, _settings: Settings) -> DataFrame:
        """The streaming frame: `value`, text, and where it stood, for `values`."""
        return _frame(spark, spec, str(self.folder), self.at_once)

    @staticmethod
    def values(rows: pa.Table) -> list[str]:
        """The events of a batch in order: Spark reads the largest of its files first."""
        return _in_order(rows)


@dataclass(frozen=True)
class Objects:
    """A bucket of S3, or what lies below `prefix/` in it, in which such files arrive as objects.

    Batches are those of a folder with the same files, in the order in which S3 took them.
    """

    bucket: str
    prefix: str  # without a slash at either end; empty for all of the bucket
    at_once: int = FILES_AT_ONCE

    def __str__(self) -> str:
        return f"files:s3://{self._path}"

    def jars(self, settings: Settings) -> list[Path]:
        """Hadoop's S3A connector. Raises `EnvironmentFault` when it is not installed."""
        return s3a.jars(settings.s3a_jars)

    def check(self, _settings: Settings) -> None:
        """Raise `EnvironmentFault` unless S3 answers, lets it be read, and holds an object."""
        s3a.check(self.bucket, f"{self.prefix}/" if self.prefix else "", str(self))

    def frame(self, spark: SparkSession, spec: LineSpec, _settings: Settings) -> DataFrame:
        """The streaming frame: `value`, text, and where it stood, for `values`."""
        configure(spark, s3a.options(str(self)))
        with opened(str(self)):
            return _frame(spark, spec, f"s3a://{self._path}", self.at_once)

    @staticmethod
    def values(rows: pa.Table) -> list[str]:
        """The events of a batch in order: Spark reads the largest of its files first."""
        return _in_order(rows)

    @property
    def _path(self) -> str:
        return f"{self.bucket}/{self.prefix}"


def _frame(spark: SparkSession, spec: LineSpec, place: str, at_once: int) -> DataFrame:
    def reader(names: str) -> DataFrame:
        options = {"pathGlobFilter": names, "maxFilesPerTrigger": str(at_once)}
        return spark.readStream.options(**options)

    lines = reader("*.jsonl").text(place).where("trim(value) != ''")
    rows = reader("*.parquet").schema(_columns(spec)).parquet(place)
    others = ("event", "impression_id", "request_id", "value", *spec.columns)
    names = ", ".join(f"`{name}`" for name in others)
    event = f"to_json(struct(unix_micros(event_at) AS event_at, {names})) AS value"
    stood = [f"_metadata.{name} AS {name}" for name in _PLACE]
    return lines.selectExpr("value", *stood).union(rows.selectExpr(event, *stood))


def _in_order(rows: pa.Table) -> list[str]:
    by_place = pc.sort_indices(rows, [(name, "ascending") for name in _PLACE])  # stable
    values: list[str] = rows["value"].take(by_place).to_pylist()
    return values


def _columns(spec: LineSpec) -> str:
    own = {"event": "STRING", "impression_id": "STRING", "request_id": "STRING"}
    own |= {"event_at": "TIMESTAMP", "value": "BIGINT"}
    declared = {name: _TYPES[kind] for name, kind in spec.columns.items()}
    return ", ".join(f"`{name}` {kind}" for name, kind in (own | declared).items())
