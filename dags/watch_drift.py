"""Every drift window: does the line still see the world that it learned?

**Guarantee.** Green: inputs, scores, label delay and the loss of what was served are distributed
as before, within limits that the line's own past sets. *Success* of `retrain` is a retrain.

**Schedule.** Every `drift.window` for live lines; lines that are read from files run by hand.

**At 3 a.m.** *Red `look`*: its log names what moved, with figure and limit. What follows is what
the line's `drift` declares; a frozen line learns again after `headrace drift --thaw`. The champion
serves on in any case.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.sdk import exceptions as ends

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

    settings, spec = load_settings(), find_line(load_settings(), line)
    seen = drift.look(settings, spec)
    drift.act(settings, spec, seen)
    for kind, sentences in seen.drifted.items():
        log.error("%s: %s", kind, "; ".join(sentences))
    if seen.outcome in ("alarm", "freeze"):
        raise ends.AirflowFailException(f"drift, {seen.outcome}: {seen.drifted}")
    return seen.outcome


@task(execution_timeout=timedelta(minutes=1))
def retrain(line: str, outcome: str) -> None:
    """Start a full retrain where the outcome says so; otherwise skipped."""
    if outcome != "retrain":
        raise ends.AirflowSkipException("nothing drifted")
    # what TriggerDagRunOperator raises: its import takes longer than all of these files
    rest: dict[str, Any] = {"wait_for_completion": False, "deferrable": False, "poke_interval": 60}
    rest |= {"reset_dag_run": False, "skip_when_already_exists": True}
    rest |= {"allowed_states": [], "failed_states": []}
    name, run = f"full_train_{line}", f"drift__{datetime.now(UTC).isoformat()}"
    raise ends.DagRunTriggerException(trigger_dag_id=name, dag_run_id=run, conf=None, **rest)


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
        deadline=late_after(timedelta(minutes=15)),
        default_args=task_defaults(first_retry_s=30),
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec)
        outcome = look.override(inlets=[assets.features, assets.served])(spec.line)
        retrain(spec.line, outcome)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"watch_drift_{_spec.line}"] = build(_spec)
