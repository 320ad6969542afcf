"""Every night: train from all history but the newest hold-out; replace the champion if better.

**Guarantee.** One run at a time for a line, beside `incremental_train`: whichever promotes second
finds the champion moved and is rejected, so no version is overwritten unseen. The first run of
a line makes its first champion, judged against the constant prior. On one machine full trainings
and searches of all lines follow one another (the pool `headrace_training`).

**Schedule.** 03:00 in the line's time zone for live lines with `cadence.full: 1d`, else that
cadence; lines that are read from files run by hand. Nothing is learned when there is no history.

**At 3 a.m.** *Red `report_outcome`*: the new model was not better, or the champion moved on while
it trained; the reasons are in its log, the champion serves on, and nothing has to be done. If
it is red for days, the declaration or the data has changed. *Red `run_pipeline`*: the machinery
broke (memory, disk); its log names what. Training restarts from the log, so just run it again.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, DeltaTriggerTimetable, Param, task

from dags.shared.defaults import heavy, tags_of, task_defaults
from dags.shared.lateness import late_after
from dags.shared.training import gated_training
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings


@task.short_circuit
def plan(line: str) -> bool:
    """Whether there is any history to learn."""
    from headrace import cycle

    settings = load_settings()
    return cycle.plan_full(settings, find_line(settings, line)) is not None


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    every = timedelta(microseconds=spec.cadence.full)
    # a line that is new, or whose Airflow is, waits for its first night: it was just trained
    nightly = CronTriggerTimetable(
        "0 3 * * *", timezone=spec.timezone, run_immediately=timedelta(0)
    )
    schedule = nightly if every == timedelta(days=1) else DeltaTriggerTimetable(every)
    with DAG(
        dag_id=f"full_train_{spec.line}",
        doc_md=__doc__,
        schedule=schedule if spec.source.kind == "live" else None,
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(hours=7)),
        default_args=task_defaults(first_retry_s=60),
        params={"reason": Param(None, type=["null", "string"], title="Reason")},
        tags=tags_of(spec),
    ) as dag:
        gated_training(spec, "full_train", plan, longest=timedelta(hours=6), **heavy())
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"full_train_{_spec.line}"] = build(_spec)
