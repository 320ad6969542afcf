"""Every night: the window features of a day's impressions, recomputed from the log, as Parquet.

**Guarantee.** The parts of an interval appear whole below `backfill/` in the line's home, in a
folder named by the interval; a run that is repeated writes the same bytes. Whatever computes
them, this machine or Spark, they are the values that were served, bit for bit.

**Schedule.** Daily in the line's time zone over the day before, by the stamps of the log. Older
days: Airflow's *Backfill* (the interval of a run is what it computes), or a run by hand with *From*
and *To*. Skipped when the log holds no event of that day.

**At 3 a.m.** *Red*: the disk is full, Java is missing (`engine: spark`) or a segment of the log is
damaged; the log names which. Nothing that serves depends on it: mend it, then clear the task.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from dags.shared.intervals import daily, interval_form, interval_of
from dags.shared.kubeflow import RunPipeline
from dags.shared.lateness import late_after
from headrace.declaration import LineSpec
from headrace.settings import load_lines, load_settings


@task
def choose_interval(
    line: str,
    params: dict[str, Any],
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
) -> dict[str, str]:
    """What the pipeline is asked for."""
    interval = interval_of(line, params, data_interval_start, data_interval_end)
    return interval | {"engine": str(params["engine"])}


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    with DAG(
        dag_id=f"backfill_features_{spec.line}",
        doc_md=__doc__,
        schedule=daily(spec),
        start_date=datetime(2000, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(hours=8)),
        default_args=task_defaults(first_retry_s=60),
        params=interval_form(),
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec)
        RunPipeline(
            task_id="write_features",
            line=spec.line,
            pipeline="backfill_features",
            longest=timedelta(hours=6),
            options=choose_interval(spec.line),
            inlets=[assets.events],
            outlets=[assets.features],
        )
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"backfill_features_{_spec.line}"] = build(_spec)
