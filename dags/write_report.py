"""Every night: the day's report of a line, as a page for people.

**Guarantee.** The page of an interval stands alone: staleness, quality by time and slice, the worst
answers, gates, alarms, drift, parity, cost. It lies below `reports/` in the line's home, named by
the interval; the run links to it (*Report*), and Kubeflow shows it with the step.

**Schedule.** Daily in the line's time zone over the day before, for live lines; another interval
by *From* and *To* in the form. Skipped when the log holds no event of that day. It is no step of
a training: drawing takes seconds that a cycle does not have.

**At 3 a.m.** *Red*: the log names what it could not read. Nothing that learns or serves depends on
it: mend that, then clear the task.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from dags.shared.defaults import tags_of, task_defaults
from dags.shared.intervals import daily, interval_form, interval_of
from dags.shared.lateness import late_after
from dags.shared.reporting import WriteReport
from headrace.declaration import LineSpec
from headrace.settings import load_lines, load_settings


@task
def choose_interval(
    line: str,
    params: dict[str, Any],
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
) -> dict[str, str]:
    """What the report is about."""
    return interval_of(line, params, data_interval_start, data_interval_end)


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    form = interval_form()
    with DAG(
        dag_id=f"write_report_{spec.line}",
        doc_md=__doc__,
        schedule=daily(spec) if spec.source.kind == "live" else None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(hours=2)),
        default_args=task_defaults(first_retry_s=60),
        params={name: form[name] for name in ("from", "to")},
        tags=tags_of(spec),
    ) as dag:
        WriteReport(
            task_id="write_page",
            line=spec.line,
            pipeline="write_report",
            longest=timedelta(hours=1),
            options=choose_interval(spec.line),
        )
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"write_report_{_spec.line}"] = build(_spec)
