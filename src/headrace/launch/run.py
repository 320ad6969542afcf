"""Run a compiled Kubeflow pipeline for a line: here by `kfp.local`, or on a cluster by URL.

All runners take the same YAML from `pipelines/compiled/`. How a run ended is read back from
the cycle's record, which its components wrote.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from headrace import records
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError
from headrace.launch import cluster
from headrace.launch.local import run_here
from headrace.launch.package import compiled, package_of
from headrace.records import Cycle, Outcome
from headrace.settings import Settings, find_line

Pipeline = Literal["incremental_train", "full_train", "full_train_gpu"]

KIND_OF: Final = {
    "incremental_train": "incremental",
    "full_train": "full",
    "full_train_gpu": "full",
}


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `outcome` and `stage` as in `records.Cycle`; `log` holds the components'
    output of a local run, `endpoint_run` the id of a run on a cluster.

    `outcome` is `elsewhere` for a run that succeeded on a cluster whose record of the cycle is not
    in this home: what the gates said stands in the cluster's storage.
    """

    run: str
    outcome: Outcome | Literal["elsewhere"]
    stage: str
    reasons: tuple[str, ...]
    version: str | None
    started_us: int
    ended_us: int
    log: str | None = None
    endpoint_run: str | None = None


def run_pipeline(
    settings: Settings,
    pipeline: str,
    line: str,
    run: str | None = None,
    timeout_s: float = 3600.0,
    *,
    poll_s: float = cluster.POLL_S,
    workers: int = 1,
) -> RunResult:
    """Run a pipeline to its end and say how it ended; a failed component is an outcome, no error.

    A full training is shared by `workers` processes.

    `timeout_s` bounds a run on a cluster (then it is told to end, and `EnvironmentFault`), which
    is asked for its state every `poll_s`. Raises `DeclarationError` for an unknown pipeline or
    line, `EnvironmentFault` when its YAML is missing or the endpoint refuses.
    """
    if pipeline not in KIND_OF:
        raise DeclarationError(f"pipeline {pipeline!r} is unknown; use {' or '.join(KIND_OF)}")
    package = compiled(pipeline)
    if workers != 1 and KIND_OF[pipeline] != "full":
        raise DeclarationError(f"{pipeline} takes no workers; leave them out, or run full_train")
    spec = find_line(settings, line)
    name = run or records.new_run()
    began = records.started(name, KIND_OF[pipeline])
    arguments: dict[str, int | str] = {"line": line, "run": name}
    arguments |= {} if workers == 1 else {"workers": workers}
    if settings.kfp_endpoint is None:
        log = settings.home / "logs" / f"kfp-{name}.log"
        problem = run_here(settings, package, name, arguments, log)
        return _result(settings, spec, began, problem, log=str(log))
    there = run_titled(
        settings, spec, pipeline, name, arguments, timeout_s=timeout_s, poll_s=poll_s
    )
    if there.state == "SUCCEEDED" and records.find_record(settings, spec, name) is None:
        return _elsewhere(settings, began, there.run_id)
    problem = None
    if there.state != "SUCCEEDED":
        problem = f"run {there.run_id} ended {there.state} on the cluster"
        problem += f": {there.why}" if there.why else ""
    return _result(settings, spec, began, problem, endpoint_run=there.run_id)


def run_titled(
    settings: Settings,
    spec: LineSpec,
    pipeline: str,
    run: str,
    arguments: Mapping[str, int | str],
    *,
    timeout_s: float,
    poll_s: float,
) -> cluster.Ended:
    """Run a line's pipeline on the cluster under its `title`; raises as `cluster.run_there`."""
    package, name = package_of(settings, spec, pipeline), title(pipeline, spec.line, run)
    return cluster.run_there(settings, package, arguments, name, timeout_s=timeout_s, poll_s=poll_s)


def title(pipeline: str, line: str, run: str) -> str:
    """How a run is called on a cluster: one name for one run, whoever submits it."""
    return f"{line} {KIND_OF.get(pipeline, pipeline)} {run}"


def _elsewhere(settings: Settings, began: Cycle, run_id: str) -> RunResult:
    """Neither promoted nor failed as far as this home knows, so nothing is recorded in it."""
    why = (
        f"submitted elsewhere: run {run_id} succeeded on the cluster, and the record of "
        f"{began.run} lies on its storage, not in {settings.home}"
    )
    return RunResult(
        run=began.run,
        outcome="elsewhere",
        stage=began.stage,
        reasons=(why,),
        version=None,
        started_us=began.started_us,
        ended_us=time.time_ns() // 1_000,
        endpoint_run=run_id,
    )


def _result(
    settings: Settings,
    spec: LineSpec,
    began: Cycle,
    problem: str | None,
    *,
    log: str | None = None,
    endpoint_run: str | None = None,
) -> RunResult:
    """Read the cycle's record; write it as failed where a component died before it could."""
    ended = records.find_record(settings, spec, began.run)
    if ended is None:
        why = problem or f"the run left no record in {settings.home}"
        ended = records.record(settings, spec, replace(began, outcome="failed", reasons=(why,)))
    return RunResult(
        run=ended.run,
        outcome=ended.outcome,
        stage=ended.stage,
        reasons=ended.reasons,
        version=ended.version,
        started_us=ended.started_us,
        ended_us=ended.ended_us,
        log=log,
        endpoint_run=endpoint_run,
    )
