"""Every drift window: does the line still see the world that it learned?

**Guarantee.** Green means that inputs, scores, the time that labels take and the loss of what was
served are distributed as before, within limits that the line's own past sets.

**Schedule.** Each `drift.window` for live lines; lines that are read from files run by hand.
`retrain` is skipped when nothing drifted, so its *success* is a retrain.

**At 3 a.m.** *Red `look`*: something moved, and its log names what, with figure and limit. The
line's `drift` says what follows: an alarm, a full retrain (started here), or a frozen line that
learns nothing until `headrace drift --thaw`. The champion serves on in any case.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.exceptions import DagRunTriggerException as Trigger

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from dags.shared.lateness import late_after
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task(execution_timeout=timedelta(minutes=10))
def look(line: str) -> str:
    """Hold the newest window against the past and do what the line declares; the outcome."""
    from headrace import drift

    spec = find_line(settings := load_settings(), line)
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
    raise Trigger(
        trigger_dag_id=f"full_train_{line}", dag_run_id=f"drift__{datetime.now(UTC).isoformat()}",
        conf={"reason": "drift"}, reset_dag_run=False, skip_when_already_exists=True,
        wait_for_completion=False, allowed_states=["success"], failed_states=["failed"],
        poke_interval=60, deferrable=False,
    )  # fmt: skip


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    with DAG(
        dag_id=f"watch_drift_{spec.line}",
        doc_md=__doc__,
        schedule=timedelta(microseconds=spec.drift.window) if spec.source.kind == "live" else None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(minutes=30)),
        default_args=task_defaults(first_retry_s=30),
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec)
        retrain(spec.line, look.override(inlets=[assets.features, assets.served])(spec.line))
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"watch_drift_{_spec.line}"] = build(_spec)
