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

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from headrace.declaration import LineSpec
from headrace.settings import load_lines, load_settings

log = logging.getLogger(__name__)
LONGEST = timedelta(hours=6)


@task(execution_timeout=LONGEST)
def score_rows(
    line: str,
    params: dict[str, Any],
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
) -> str:
    """Run the pipeline over the interval, or over a file; returns the name of the run."""
    from headrace.launch import holds_events, run_batch_score

    settings = load_settings()
    names = ("source", "output", "at_column", "version", "engine")
    options = {name: params[name] for name in names if params[name]}
    if "source" not in options:
        start, end = params["from"] or data_interval_start, params["to"] or data_interval_end
        if not start or not end:
            raise AirflowFailException("this run has no interval; give From and To, or a File")
        options |= {"start": str(start), "end": str(end)}
        asked_for = params["from"] or params["to"]
        if not asked_for and not holds_events(settings, line, str(start), str(end)):
            raise AirflowSkipException(f"no events from {start} to {end}")
    ended = run_batch_score(settings, line, timeout_s=LONGEST.total_seconds(), **options)
    log.info("%s", ended)
    return ended.run


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    text, moment = {"type": ["null", "string"]}, {"type": ["null", "string"], "format": "date-time"}
    daily = CronDataIntervalTimetable("0 0 * * *", timezone=spec.timezone)
    with DAG(
        dag_id=f"batch_score_{spec.line}",
        doc_md=__doc__,
        schedule=daily if spec.source.kind == "live" else None,
        start_date=datetime(2000, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args=task_defaults(first_retry_s=60),
        params={
            "from": Param(None, title="From", description="Instead of the run's day", **moment),
            "to": Param(None, title="To", description="The moment after the last one", **moment),
            "source": Param(None, title="File", description="Instead: .parquet, .csv", **text),
            "output": Param(None, title="Output", description="Needed with a file", **text),
            "at_column": Param(None, title="Moments", description="Column of the file", **text),
            "version": Param(None, title="Version", description="Default: champion", **text),
            "engine": Param("local", enum=["local", "spark"], title="Engine"),
        },
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec.line)
        made_of = [assets.events, assets.features, assets.version]
        score_rows.override(inlets=made_of, outlets=[assets.scores])(spec.line)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"batch_score_{_spec.line}"] = build(_spec)
