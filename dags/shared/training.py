"""The two tasks that end every training: run its pipeline, and say how it ended."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags.shared.assets import LineAssets
from headrace.settings import find_line, load_settings

log = logging.getLogger(__name__)


@task
def run_pipeline(line: str, pipeline: str, timeout_s: float) -> str:
    """Check data, train, evaluate, promote; returns the name of the run's record."""
    from headrace.launch import run_pipeline as launch

    result = launch(load_settings(), pipeline, line, timeout_s=timeout_s)
    if result.outcome == "failed":
        raise AirflowException("; ".join(result.reasons))
    return result.run


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


def gated_training(line: str, pipeline: str, plan: Any, longest: timedelta) -> None:
    """Plan, run for at most `longest` and report: the tasks of a training, inside its DAG."""
    assets = LineAssets.of(line)
    limited = run_pipeline.override(execution_timeout=longest, inlets=[assets.samples])
    run = limited(line, pipeline, longest.total_seconds())
    plan(line) >> run
    report_outcome.override(outlets=[assets.version, assets.served])(line, run)
