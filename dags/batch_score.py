"""Every night: scores of a day's impressions by the champion, as Parquet; or of a file, by hand.

**Guarantee.** A score is what the server would have said at that moment, bit for bit. Those of an
interval appear whole in a file below `scores/batch/` in the line's home, named by the interval; a
run that is repeated replaces it, with the same scores while *Version* is (default: the champion).

**Schedule.** Daily over the day before, by the stamps of the log; lines that are read from files
run by hand. Older days: Airflow's *Backfill*, or *From* and *To*. With *File* its rows are scored
instead, as asked at *Moments*, a column, or now; refused rows lie beside the output.

**At 3 a.m.** *Red*: there is no champion yet, ticks lag behind the interval (the retries wait for
them), a file does not fit the line, or the disk is full; the log says which. *Skipped*: the
day holds no events. Nothing that serves depends on it: mend it, then clear the task.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from dags.shared.intervals import daily, interval_form, interval_of
from dags.shared.kubeflow import RunPipeline
from dags.shared.lateness import late_after
from headrace.declaration import LineSpec
from headrace.settings import load_lines, load_settings


@task
def choose_rows(
    line: str,
    params: dict[str, Any],
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
) -> dict[str, str]:
    """What the pipeline is asked for: a file, or an interval."""
    names = ("source", "output", "at_column", "version", "engine")
    options = {name: str(params[name]) for name in names if params[name]}
    if "source" in options:
        return options
    return options | interval_of(line, params, data_interval_start, data_interval_end)


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    text = {"type": ["null", "string"]}
    with DAG(
        dag_id=f"batch_score_{spec.line}",
        doc_md=__doc__,
        schedule=daily(spec) if spec.source.kind == "live" else None,
        start_date=datetime(2000, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(hours=8)),
        default_args=task_defaults(first_retry_s=60),
        params=interval_form()
        | {
            "source": Param(None, title="File", description="Instead: .parquet, .csv", **text),
            "output": Param(None, title="Output", description="Needed with a file", **text),
            "at_column": Param(None, title="Moments", description="Column of the file", **text),
            "version": Param(None, title="Version", description="Default: champion", **text),
        },
        tags=tags_of(spec),
    ) as dag:
        assets, chosen = LineAssets.of(spec), choose_rows(spec.line)
        made_of = [assets.events, assets.features, assets.version]
        RunPipeline(
            task_id="score_rows", line=spec.line, pipeline="batch_score", options=chosen,
            longest=timedelta(hours=6), inlets=made_of, outlets=[assets.scores],
        )  # fmt: skip
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"batch_score_{_spec.line}"] = build(_spec)
