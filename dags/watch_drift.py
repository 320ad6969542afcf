"""Every drift window: does the line still see the world that it learned?

**Guarantee.** Green means that inputs, scores, the time that labels take and the loss of what was
served are distributed as before, within limits that the line's own past sets.

**Schedule.** As often as `drift.window` says for live lines; lines that are read from files run by
hand. Skipped when nothing drifted, so *success* of `retrain` is a retrain.

**At 3 a.m.** *Red `look`*: something moved, and its log names what, with figure and limit. What
follows is what the line's `drift` declares: an alarm, a full retrain (started here), or a frozen
line that learns nothing until `headrace drift --thaw`. The champion serves on in any case.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DagRunTriggerException,
)

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task(execution_timeout=timedelta(minutes=10))
def look(line: str) -> str:
    """Hold the newest window against the past and do what the line declares; the outcome."""
    from headrace import drift

    settings = load_settings()
    spec = find_line(settings, line)
    seen = drift.look(settings, spec)
    drift.act(settings, spec, seen)
    for kind, sentences in seen.drifted.items():
        log.error("%s: %s", kind, "; ".join(sentences))
    if seen.outcome in ("alarm", "freeze"):
        raise AirflowFailException(f"drift, {seen.outcome}: {seen.drifted}")
    return seen.outcome


@task(execution_timeout=timedelta(minutes=1))
def retrain(line: str, outcome: str) -> None:
    """Start a full retrain where the outcome says so; otherwise skipped."""
    if outcome != "retrain":
        raise AirflowSkipException("nothing drifted")
    # what TriggerDagRunOperator raises, whose import takes longer than all of these files
    raise DagRunTriggerException(
        trigger_dag_id=f"full_train_{line}",
        dag_run_id=f"drift__{datetime.now(UTC).isoformat()}",
        conf={"reason": "drift"},
        reset_dag_run=False,
        skip_when_already_exists=True,
        wait_for_completion=False,
        allowed_states=["success"],
        failed_states=["failed"],
        poke_interval=60,
        deferrable=False,
    )


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    every = timedelta(microseconds=spec.drift.window)
    with DAG(
        dag_id=f"watch_drift_{spec.line}",
        doc_md=__doc__,
        schedule=every if spec.source.kind == "live" else None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args=task_defaults(first_retry_s=30),
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec)
        outcome = look.override(inlets=[assets.features, assets.served])(spec.line)
        retrain(spec.line, outcome)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"watch_drift_{_spec.line}"] = build(_spec)
