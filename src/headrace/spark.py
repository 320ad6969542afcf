"""Spark: a session, and one function run over the rows of a table that share a key.

Everything binds to the loopback interface and the UI is off; a cluster is reached by `master`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from headrace.errors import EnvironmentFault
from headrace.settings import java_command

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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
def session(master: str = "local[2]", java: str | None = None) -> Iterator[SparkSession]:
    """Start a Spark session and stop it at the end. Raises EnvironmentFault when it cannot."""
    require_java(java)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(master).appName("headrace")
    for name, value in {
        "spark.driver.bindAddress": _LOOPBACK,
        "spark.driver.host": _LOOPBACK,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.session.timeZone": "UTC",
    }.items():
        builder = builder.config(name, value)
    try:
        started = builder.getOrCreate()
    except PySparkException as error:  # such as a JAVA_HOME that points to an older Java
        raise EnvironmentFault(
            f"Spark did not start on {master}: {error}; check JAVA_HOME ({_REMEDY})"
        ) from error
    if master.startswith("local"):
        # Spark would start `python3` from PATH, which need not have this package
        started.sparkContext.pythonExec = sys.executable
    try:
        yield started
    finally:
        started.stop()


def map_by_key(
    spark: SparkSession,
    table: pa.Table,
    key: str,
    function: Callable[[pa.Table], pa.Table],
    schema: pa.Schema,
    *,
    partitions: int,
) -> pa.Table:
    """Give `function` all rows of each key at once, many keys to a call; rows come in any order.

    `function` travels by reference, so workers need this package; its tables follow `schema`.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    def of_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = list(batches)
        if received:
            yield from function(pa.Table.from_batches(received)).cast(schema).to_batches()

    rows = spark.createDataFrame(table).repartition(partitions, key)
    return rows.mapInArrow(of_partition, from_arrow_schema(schema)).toArrow()
