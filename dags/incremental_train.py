"""Every few seconds: learn what arrived since the last version; serve it if the gates agree.

**Guarantee.** One run at a time for a line. What is learned follows from the log's offsets,
never from the run, so a run that is repeated, skipped or killed learns nothing twice and loses
nothing. A rejected candidate is never served: the champion stays and `report_outcome` is red.

**Schedule.** `cadence.incremental` for live lines, and at once when `cadence.on_samples` of them
wait (the asset `<line>.samples` tells); lines that are read from files run by hand. When there
is too little to learn, or no champion yet to continue, all after `plan` is skipped.

**At 3 a.m.** *Red `report_outcome`*: a gate said no, the reasons are in its log, the old model
serves on, and a window refused for its data is quarantined (`headrace quarantine list`). If
several in a row are red, look for what changed upstream. *Red `run_pipeline`*: the machinery
broke; its log names what, and once that is repaired the next run catches up by itself.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, DeltaTriggerTimetable, Param, task

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from dags.shared.lateness import late_after
from dags.shared.training import gated_training
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task.short_circuit
def plan(line: str) -> bool:
    """Whether there is a champion to continue and enough that it has not learned."""
    from headrace import cycle
    from headrace.line import LineStore

    settings = load_settings()
    if LineStore(settings.line_store_url(line), line).champion() is None:
        log.info("no champion to continue yet; run full_train_%s once", line)
        return False
    return cycle.plan(settings, find_line(settings, line)) is not None


def schedule(spec: LineSpec) -> Any:
    """The time, and beside it the samples where the line says so."""
    if spec.source.kind != "live":
        return None
    every = DeltaTriggerTimetable(timedelta(microseconds=spec.cadence.incremental))
    if spec.cadence.on_samples is None:
        return every
    return AssetOrTimeSchedule(timetable=every, assets=[LineAssets.of(spec).samples])


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    with DAG(
        dag_id=f"incremental_train_{spec.line}",
        doc_md=__doc__,
        schedule=schedule(spec),
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(minutes=20)),
        default_args=task_defaults(first_retry_s=5),
        params={"reason": Param(None, type=["null", "string"], title="Reason")},
        tags=tags_of(spec),
    ) as dag:
        gated_training(spec, "incremental_train", plan, longest=timedelta(minutes=15))
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"incremental_train_{_spec.line}"] = build(_spec)
