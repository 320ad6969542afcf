"""Every night: the window features of a day's impressions, recomputed from the log, as Parquet.

**Guarantee.** The parts of an interval appear whole below `backfill/` in the line's home, in a
folder named by the interval; a run that is repeated writes the same bytes. Whatever computes
them, this machine or Spark, they are the values that were served, bit for bit.

**Schedule.** Daily in the line's time zone over the day before, by the stamps of the log. Older
days: Airflow's *Backfill* (the interval of a run is what it computes), or a run by hand with *From*
and *To*. Skipped when the log holds no impression of that interval.

**At 3 a.m.** *Red*: the disk is full, Java is missing (`engine: spark`) or a segment of the log is
damaged; the log names which. Nothing that serves depends on it: mend it, then clear the task.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task(execution_timeout=timedelta(hours=6))
def write_features(
    line: str,
    params: dict[str, Any],
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
) -> str:
    """Compute the interval; returns the name of its folder."""
    from headrace.backfill.interval import backfill
    from headrace.events import micros

    start = datetime.fromisoformat(params["from"]) if params["from"] else data_interval_start
    end = datetime.fromisoformat(params["to"]) if params["to"] else data_interval_end
    if start is None or end is None:
        raise AirflowFailException("this run has no interval; give From and To in its form")
    settings = load_settings()
    spec, home = find_line(settings, line), settings.line_home(line)
    interval = (micros(start), micros(end))
    written = backfill(spec, home, home / "backfill", interval, engine=params["engine"])
    if not written.rows:
        raise AirflowSkipException(f"no impressions from {start} to {end}")
    log.info("%s: %d impressions", written.folder, written.rows)
    return written.folder.name


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    moment = {"type": ["null", "string"], "format": "date-time"}
    with DAG(
        dag_id=f"backfill_features_{spec.line}",
        doc_md=__doc__,
        schedule=CronDataIntervalTimetable("0 0 * * *", timezone=spec.timezone),
        start_date=datetime(2000, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args=task_defaults(first_retry_s=60),
        params={
            "from": Param(None, title="From", description="Instead of the run's day", **moment),
            "to": Param(None, title="To", description="The moment after the last one", **moment),
            "engine": Param("local", enum=["local", "spark"], title="Engine"),
        },
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec.line)
        write_features.override(inlets=[assets.events], outlets=[assets.features])(spec.line)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"backfill_features_{_spec.line}"] = build(_spec)
