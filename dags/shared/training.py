"""The two tasks that end every training: run its pipeline, and say how it ended."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.shared.assets import LineAssets
from dags.shared.kubeflow import RunPipeline
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_settings

log = logging.getLogger(__name__)


@task(retries=0)
def report_outcome(line: str, run: str) -> None:
    """Say how the run ended; red, with the reasons, when a gate rejected; skipped when idle."""
    from headrace import records

    settings = load_settings()
    ended = records.find_record(settings, find_line(settings, line), run)
    if ended is None and settings.kfp_endpoint is not None:
        raise AirflowSkipException(f"the record of {run} lies on the cluster's storage")
    if ended is None or ended.outcome == "rejected":
        raise AirflowFailException("; ".join(ended.reasons) if ended else f"{run} has no record")
    if not ended.passed:
        raise AirflowSkipException(f"{run} {ended.outcome}: " + "; ".join(ended.reasons))
    log.info("%s: %s serves", run, ended.version)


def gated_training(
    spec: LineSpec, pipeline: str, plan: Any, longest: timedelta, **given: Any
) -> None:
    """Plan, run for at most `longest` and report: the tasks of a training, inside its DAG.

    `given`: what the running task is told besides, such as `heavy()`.
    """
    line, assets = spec.line, LineAssets.of(spec)
    run = RunPipeline(
        task_id="run_pipeline",
        line=line,
        pipeline=pipeline,
        longest=longest,
        inlets=[assets.samples],
        **given,
    )
    plan(line) >> run
    report_outcome.override(outlets=[assets.version, assets.served])(line, run.output)
