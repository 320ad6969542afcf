"""Run a compiled Kubeflow pipeline for a line: here by `kfp.local`, or on a cluster by URL.

Both runners take the same YAML from `pipelines/compiled/`. How a run ended is read back from
the cycle's record, which its components wrote.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from headrace import cycle
from headrace.cycle import Cycle, Outcome
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, EnvironmentFault
from headrace.settings import PROJECT, Settings, find_line

Pipeline = Literal["incremental_train", "full_train"]

KIND_OF: Final = {"incremental_train": "incremental", "full_train": "full"}
COMPILED: Final = PROJECT / "pipelines" / "compiled"
_ENDED: Final = ("SUCCEEDED", "FAILED", "SKIPPED", "ERROR", "CANCELED")
_POLL_S: Final = 2.0


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `outcome` and `stage` as in `cycle.Cycle`; `log` holds the components'
    output of a local run, `endpoint_run` the id of a run on a cluster.
    """

    run: str
    outcome: Outcome
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
) -> RunResult:
    """Run a pipeline to its end and say how it ended; a failed component is an outcome, no error.

    `timeout_s` bounds a run on a cluster (`EnvironmentFault`). Raises `DeclarationError` for an
    unknown pipeline or line, `EnvironmentFault` when its YAML is missing or the endpoint refuses.
    """
    if pipeline not in KIND_OF:
        raise DeclarationError(f"pipeline {pipeline!r} is unknown; use {' or '.join(KIND_OF)}")
    package = COMPILED / f"{pipeline}.yaml"
    if not package.exists():
        raise EnvironmentFault(
            f"{package} is missing; run python -m pipelines.{pipeline} --compile"
        )
    spec = find_line(settings, line)
    name = run or cycle.new_run()
    began = cycle.started(name, KIND_OF[pipeline])
    if settings.kfp_endpoint is None:
        log = settings.home / "logs" / f"kfp-{name}.log"
        problem = _run_here(settings, package, {"line": line, "run": name}, log)
        return _result(settings, spec, began, problem, log=str(log))
    return _run_there(settings, spec, began, package, timeout_s)


def _run_here(
    settings: Settings, package: Path, arguments: dict[str, str], log: Path
) -> str | None:
    """Run in subprocesses of this interpreter; returns what failed, None if nothing did."""
    from kfp import components, local

    log.parent.mkdir(parents=True, exist_ok=True)
    root = settings.home / "kfp"
    workspace = root / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root),
        workspace_root=str(workspace),
        raise_on_error=True,
    )
    component = components.load_component_from_file(str(package))
    with (
        log.open("a", encoding="utf-8") as copy,
        _environment(settings),
        redirect_stdout(_Tee(sys.stdout, copy)),
    ):
        try:
            component(**arguments)
        except RuntimeError as problem:  # kfp's word for a failed task; its output is in the log
            return f"{problem}; see {log}"
    return None


def _run_there(
    settings: Settings, spec: LineSpec, began: Cycle, package: Path, timeout_s: float
) -> RunResult:
    import kfp
    from kfp_server_api.exceptions import ApiException  # type: ignore[import-untyped]
    from urllib3.exceptions import HTTPError

    try:
        client = kfp.Client(host=settings.kfp_endpoint, existing_token=settings.kfp_token)
        submitted = client.create_run_from_pipeline_package(
            str(package),
            arguments={"line": spec.line, "run": began.run},
            run_name=f"{spec.line} {began.kind} {began.run}",
            enable_caching=False,
        )
        deadline = time.monotonic() + timeout_s
        state = ""
        while state not in _ENDED:
            if time.monotonic() >= deadline:
                raise EnvironmentFault(
                    f"run {submitted.run_id} on {settings.kfp_endpoint} is {state or 'unknown'} "
                    f"after {timeout_s:.0f} s; look at it there, or allow more time"
                )
            time.sleep(_POLL_S)
            state = str(client.get_run(submitted.run_id).state or "").upper()
    except (ApiException, HTTPError) as problem:
        raise EnvironmentFault(
            f"HEADRACE_KFP_ENDPOINT={settings.kfp_endpoint}: {problem}; check URL and token"
        ) from problem
    failed = None if state == "SUCCEEDED" else f"run {submitted.run_id} ended {state}"
    return _result(settings, spec, began, failed, endpoint_run=submitted.run_id)


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
    ended = cycle.find_record(settings, spec, began.run)
    if ended is None:
        why = problem or "the run left no record; is its line home this one?"
        ended = cycle.record(settings, spec, replace(began, outcome="failed", reasons=(why,)))
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


class _Tee:
    """Text written to each of several streams."""

    def __init__(self, *streams: TextIO) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
            stream.flush()
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Give the components' processes these settings, and this source tree, by environment."""
    given: dict[str, Any] = {
        "HEADRACE_HOME": settings.home,
        "HEADRACE_LINES_DIR": settings.lines_dir,
        "HEADRACE_FEATURE_REPO": settings.feature_repo,
        "HEADRACE_HOST": settings.host,
        "HEADRACE_SERVER_PORT": settings.server_port,
        "HEADRACE_COLLECTOR_PORT": settings.collector_port,
        "HEADRACE_AIRFLOW_PORT": settings.airflow_port,
        "PYTHONPATH": os.pathsep.join((str(PROJECT / "src"), str(PROJECT))),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update({name: str(value) for name, value in given.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
