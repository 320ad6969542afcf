"""Backfill of an interval of a line's log: window features at every impression, as Parquet parts.

Both engines take the same steps and leave the same bytes. On Spark the log's segments are read
by the workers and the parts are written by them; through the driver passes only who does what.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from headrace import spark
from headrace.atomic import disk_faults, sync_folder
from headrace.backfill import steps
from headrace.backfill.features import features
from headrace.backfill.steps import STRIDE, Job
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import event_schema, stamp
from headrace.log.files import FileLog
from headrace.log.stamp import offset_at

Engine = Literal["local", "spark"]
_FEWEST_PARTITIONS: Final = 8
_WRITTEN: Final = pa.schema([("rows", pa.int64())])


@dataclass(frozen=True)
class Backfilled:
    """Where the parts of an interval lie, and how many impressions they hold."""

    folder: Path
    rows: int


def backfill(
    spec: LineSpec,
    home: Path,
    out: Path,
    interval: tuple[int, int],
    *,
    engine: Engine = "local",
    master: str = "local[2]",
) -> Backfilled:
    """Write the features of impressions with a stamp in `interval` (`[from, to)`, us) below `out`.

    The folder is named by the interval; it appears whole, and replaces one of that name. Part
    `part-<n>.parquet` holds the impressions of log offsets `[n, n + 1) * 2^18` in order
    (`steps.part_schema`). Duplicates and impressions that came too late are left out, as in the
    stream. The log is read from its start, since only that tells a duplicate; what is held is
    the interval, the longest window before it, and on Spark a partition of that. Raises
    `InputError` for an empty interval, `EnvironmentFault` when Spark cannot start. A cluster's
    workers must see `home` and `out` under these paths and have this package.
    """
    from_us, to_us = interval
    if from_us >= to_us:
        raise InputError(
            f"from {stamp(from_us)} to {stamp(to_us)}: ends before it begins; give a later --to"
        )
    if not spec.windows:
        raise InputError(f"line {spec.line!r} declares no windows; there is nothing to backfill")
    folder = out / f"{stamp(from_us)}-{stamp(to_us)}"
    log = home / "log" / "events"
    stop = offset_at(FileLog(log, event_schema(spec)), to_us)
    torn = folder.with_name(folder.name + ".tmp")
    job = Job(spec, log.resolve(), torn.resolve(), from_us, to_us, stop)
    with disk_faults(out):
        shutil.rmtree(torn, ignore_errors=True)
        torn.mkdir(parents=True)
        rows = _local(job) if engine == "local" else _on_spark(job, master)
        shutil.rmtree(folder, ignore_errors=True)
        torn.rename(folder)
        sync_folder(out)
    return Backfilled(folder, rows)


def _local(job: Job) -> int:
    resolver = steps.Resolver(job)
    resolved = [resolver.rows(steps.read(job, *stride)) for stride in job.strides]
    rows = steps.in_order(pa.concat_tables([steps.row_schema(job.spec).empty_table(), *resolved]))
    asked = rows.filter(rows["request_at"].is_valid())
    found = features(job.spec, rows, asked)
    for name in found.column_names:
        asked = asked.append_column(name, found[name])
    of_part = asked["offset"].to_numpy() // STRIDE
    return sum(
        steps.write_part(job, int(part), asked.filter(pa.array(of_part == part)))
        for part in np.unique(of_part)
    )


def _on_spark(job: Job, master: str) -> int:
    partitions = max(_FEWEST_PARTITIONS, job.stop // STRIDE)
    starts, stops = zip(*job.strides, strict=True) if job.stop else ((), ())
    strides = pa.table({"start": pa.array(starts, pa.int64()), "stop": pa.array(stops, pa.int64())})
    events = steps.log_schema(job.spec)
    with spark.session(master) as session:
        table = spark.frame(session, strides, partitions)
        for together, step, schema in (
            (None, _read, events),
            ("impression_id", _resolve, steps.spread_schema(job.spec)),
            ("_key", steps.answer, steps.answer_schema(job.spec)),
            ("_part", _write, _WRITTEN),
        ):
            if together is not None:
                table = table.repartition(partitions, together)
            table = spark.map_partitions(table, partial(step, job), schema)
        return sum(spark.collect(table)["rows"].to_pylist())


def _read(job: Job, strides: pa.Table) -> pa.Table:
    return pa.concat_tables(
        [steps.read(job, row["start"], row["stop"]) for row in strides.to_pylist()]
    )


def _resolve(job: Job, events: pa.Table) -> pa.Table:
    events = events.cast(steps.log_schema(job.spec)).sort_by("offset")
    resolver = steps.Resolver(job)
    shares = range(0, events.num_rows, STRIDE)
    rows = [resolver.rows(events.slice(start, STRIDE)) for start in shares]
    return steps.spread(job, pa.concat_tables(rows))


def _write(job: Job, answers: pa.Table) -> pa.Table:
    return pa.table({"rows": [steps.write(job, answers)]}, schema=_WRITTEN)
