"""Run a pipeline's components on this machine, by `kfp.local`: in processes or in containers."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Final, TextIO

from headrace.settings import PROJECT, Settings

KEPT_RUNS: Final = 20
"""So many run folders stay below `<home>/kfp` for a look at what the components left there."""


def run_here(
    settings: Settings,
    package: Path,
    run: str,
    arguments: Mapping[str, int | str],
    log: Path,
) -> str | None:
    """Run to the end; returns what failed, None if nothing did. The output is copied to `log`.

    `settings.runner` says in what. Raises `EnvironmentFault` where no engine runs containers.
    What the components leave lies in `<home>/kfp/<run>/`; the newest `KEPT_RUNS` folders are kept.
    """
    from kfp import components, local

    log.parent.mkdir(parents=True, exist_ok=True)
    folder = settings.home / "kfp"
    try:
        with _held(folder / run):
            workspace = folder / run / "workspace"  # kfp deletes it when the pipeline ends
            workspace.mkdir(exist_ok=True)
            component = components.load_component_from_file(str(package))
            with (
                log.open("a", encoding="utf-8") as copy,
                _environment(settings),
                redirect_stdout(_Tee(sys.stdout, copy)),
            ):
                try:
                    with _runner(settings, package, run) as runner:
                        local.init(
                            runner,
                            pipeline_root=str(folder / run),
                            workspace_root=str(workspace),
                            raise_on_error=True,
                        )
                        component(**arguments)
                except RuntimeError as problem:  # kfp's word for a failed task
                    return f"{problem}; see {log}"
    finally:
        prune(folder)
    return None


def _runner(settings: Settings, package: Path, run: str) -> AbstractContextManager[Any]:
    if settings.runner == "docker":
        from headrace.launch.containers import docker_runner

        return docker_runner(settings, package, run)
    from kfp import local

    return nullcontext(local.SubprocessRunner(use_venv=False))


def prune(folder: Path, keep: int = KEPT_RUNS) -> None:
    """Delete all but the newest `keep` run folders, and none whose run has not ended."""
    runs = sorted(
        (path for path in folder.iterdir() if path.is_dir()),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )
    for path in runs[keep:]:
        with (path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # a long training beside many short ones
            shutil.rmtree(path, ignore_errors=True)  # another run may prune it just now


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run's folder, marked as in use until the block, or this process, ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        "HEADRACE_LINE_STORE": settings.line_store or "",
        "HEADRACE_MLFLOW_URI": settings.mlflow_uri or "",
        "HEADRACE_HOST": settings.host,
        "HEADRACE_SERVER_PORT": settings.server_port,
        "HEADRACE_COLLECTOR_PORT": settings.collector_port,
        "HEADRACE_AIRFLOW_PORT": settings.airflow_port,
        "HEADRACE_ONLINE_STORE": settings.online_store or "",
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
