"""Spark: a session, functions over the partitions of a frame, and a stream batch by batch.

The UI is off. With a local master everything binds to the loopback interface; on a cluster the
driver's address is Spark's to choose (`SPARK_LOCAL_IP`).
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace import errors
from headrace.errors import EnvironmentFault
from headrace.settings import java_command

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery

__all__ = [
    "Batches",
    "DataFrame",  # like SparkSession only for annotations: the one way to Spark's names
    "SparkSession",
    "collect",
    "configure",
    "frame",
    "map_partitions",
    "opened",
    "require_java",
    "session",
]

_LOOPBACK = "127.0.0.1"
_REMEDY = "Java 17 is missing: apt-get install openjdk-17-jre-headless"


def require_java(java: str | None = None) -> int:
    """Return Java's major version; raises EnvironmentFault below 17 or without Java.

    Asks the one that Spark would start: in `JAVA_HOME`, otherwise on PATH.
    """
    java = java or java_command()
    path = shutil.which(java)
    if path is None:
        where = "on PATH" if java == "java" else "there; correct or unset JAVA_HOME"
        raise EnvironmentFault(f"{_REMEDY} (no {java!r} {where})")
    told = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    if found is None or int(found[1]) < 17:
        raise EnvironmentFault(f"{_REMEDY} ({path} says {told.strip()[:200]!r})")
    return int(found[1])


@contextmanager
def session(
    master: str = "local[2]", java: str | None = None, jars: Sequence[Path] = ()
) -> Iterator[SparkSession]:
    """Start a Spark session and stop it at the end. Raises EnvironmentFault when it cannot.

    `jars` join the class path of a process's first session only.
    """
    require_java(java)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    # it prints what is raised as well
    logging.getLogger("py4j.clientserver").setLevel(logging.CRITICAL)
    local = master.startswith("local")
    builder = SparkSession.builder.master(master).appName("headrace")
    loopback = {"spark.driver.bindAddress": _LOOPBACK, "spark.driver.host": _LOOPBACK}
    for name, value in {
        **(loopback if local else {}),  # a cluster's workers have to reach the driver
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "FATAL",  # an error is raised, and told in one line
        "spark.sql.session.timeZone": "UTC",
        "spark.jars": ",".join(map(str, jars)),
    }.items():
        builder = builder.config(name, value)
    try:
        started = builder.getOrCreate()
    except PySparkException as error:  # such as a JAVA_HOME that points to an older Java
        raise EnvironmentFault(
            f"Spark did not start on {master}: {error}; check JAVA_HOME ({_REMEDY})"
        ) from error
    if local:
        # Spark would start `python3` from PATH, which need not have this package
        started.sparkContext.pythonExec = sys.executable
    try:
        yield started
    finally:
        started.stop()


def configure(spark: SparkSession, options: Mapping[str, str]) -> None:
    """Give a running session settings of Hadoop or SQL. Those of its start, Java's command line
    shows: secrets go this way.
    """
    for name, value in options.items():
        spark.conf.set(name, value)


def frame(spark: SparkSession, table: pa.Table, partitions: int) -> DataFrame:
    """A small table's rows, spread over `partitions`; it passes through the driver."""
    return spark.createDataFrame(table).repartition(partitions)


def map_partitions(
    rows: DataFrame, function: Callable[[pa.Table], pa.Table], schema: pa.Schema
) -> DataFrame:
    """Give `function` each partition's rows as one table; what it returns follows `schema`.

    Rows come in any order. `function` travels by reference, so workers need this package.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    def of_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = list(batches)
        if received:
            yield from function(pa.Table.from_batches(received)).cast(schema).to_batches()

    return rows.mapInArrow(of_partition, from_arrow_schema(schema))


def collect(rows: DataFrame) -> pa.Table:
    """The rows of a small frame, here.

    An error of ours in a worker comes through as itself, others as `EnvironmentFault`.
    """
    try:
        return rows.toArrow()
    except Exception as problem:
        ours = re.search(r"^headrace\.errors\.(\w+): (.*)$", str(problem), re.MULTILINE)
        if ours is not None:
            raise getattr(errors, ours[1])(ours[2]) from problem
        raise EnvironmentFault(f"Spark ended with an error: {_reason(problem)}") from problem


@contextmanager
def opened(place: str) -> Iterator[None]:
    """Turn what Spark raises at `place`, to which it goes at once, into an `EnvironmentFault`."""
    try:
        yield
    except Exception as problem:
        reason = _reason(problem)
        remedy = "correct the address, or start what it names"
        if "S3AFileSystem not found" in reason:
            remedy = "run infra/setup/s3a.sh, then start this process again"
        raise EnvironmentFault(f"{place}: Spark could not open it: {reason}; {remedy}") from problem


class Batches:
    """A streaming frame's new rows, handed to `take(rows, batch)` in this process, in batch order.

    A batch that ended without an error is not given again; one that was cut short is, with the
    same number and the same rows, also after a restart over the same `checkpoint`. `every_us`
    None: what is there now, then the query ends. An error of `take`, or of Spark, ends it too.
    """

    def __init__(
        self,
        rows: DataFrame,
        take: Callable[[pa.Table, int], None],
        checkpoint: Path,
        *,
        every_us: int | None,
    ) -> None:
        self.failed: BaseException | None = None  # the error of `take`, which Spark would wrap
        self._unread: str | None = None
        self._take = take
        trigger: dict[str, Any] = {"availableNow": True}
        if every_us is not None:
            trigger = {"processingTime": f"{every_us} microseconds"}
        self._query: StreamingQuery = (
            rows.writeStream.foreachBatch(self._each)
            .option("checkpointLocation", str(checkpoint))
            .trigger(**trigger)
            .start()
        )

    @property
    def active(self) -> bool:
        """Whether more may come."""
        return bool(self._query.isActive)

    @property
    def problem(self) -> str | None:
        """Why Spark could not go on, where it was not `take`."""
        told = self._query.exception()
        return self._unread or (None if told is None else _reason(told))

    def stop(self) -> None:
        """End the query."""
        self._query.stop()

    def _each(self, batch: DataFrame, number: int) -> None:
        try:
            rows = batch.toArrow()
        except Exception as problem:
            self._unread = _reason(problem)
            raise
        try:
            self._take(rows, number)
        except BaseException as problem:
            self.failed = problem
            raise


def _reason(problem: Exception) -> str:
    """The innermost cause that Spark names, or what it says first; a page of Java stands around."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by: ")]
    if causes:
        return causes[-1].removeprefix("Caused by: ")
    if len(lines) > 1 and lines[0].startswith("An error occurred while calling"):  # py4j
        return lines[1].removeprefix(": ")
    return (lines or [repr(problem)])[0]
