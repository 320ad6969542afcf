"""Local Kubeflow runs: each in a folder of its own, of which the newest stay.

No `from __future__ import annotations`: kfp reads the component's signature.
"""

import fcntl
import os
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from headrace.launch.local import KEPT_RUNS, prune, run_here
from headrace.settings import Settings, load_settings


@dsl.component(base_image="python", install_kfp_package=False)
def note(line: str, run: str) -> str:
    if line == "broken":
        raise ValueError("no such line")
    print("noted", run)  # noqa: T201
    return run


@dsl.pipeline(name="small")
def small(line: str, run: str) -> None:
    note(line=line, run=run)


@dsl.pipeline(name="small")
def small_on_kubernetes(line: str, run: str) -> None:
    task = note(line=line, run=run)
    kubernetes.use_secret_as_env(task, "nowhere", {"KEY": "KEY"})
    kubernetes.mount_pvc(task, "nowhere", "/nowhere")
    kubernetes.add_node_selector(task, "pool", "ml")


def package(folder: Path, pipeline: Any = small) -> Path:
    path = folder / "small.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return path


def old_runs(folder: Path, count: int) -> list[Path]:
    """Folders of earlier runs, oldest first."""
    made = [folder / f"run-{number}" for number in range(count)]
    for number, path in enumerate(made):
        (path / "small-2026").mkdir(parents=True)
        (path / ".lock").touch()
        os.utime(path, (number, number))
    return made


def ran(settings: Settings, path: Path, run: str, line: str = "tiny") -> str | None:
    arguments = {"line": line, "run": run}
    return run_here(settings, path, run, arguments, settings.home / "logs" / f"kfp-{run}.log")


def test_after_a_run_the_newest_folders_stay(tmp_path):
    settings = load_settings({"HEADRACE_HOME": str(tmp_path / "home")})
    earlier = old_runs(settings.home / "kfp", 25)
    assert ran(settings, package(tmp_path), "run-99") is None
    left = {path.name for path in (settings.home / "kfp").iterdir()}
    assert left == {"run-99", *(path.name for path in earlier[-(KEPT_RUNS - 1) :])}
    assert list((settings.home / "kfp" / "run-99").glob("small-*/note"))
    assert "noted run-99" in (settings.home / "logs" / "kfp-run-99.log").read_text()


def test_what_is_asked_of_kubernetes_changes_nothing_here(tmp_path):
    settings = load_settings({"HEADRACE_HOME": str(tmp_path / "home")})
    path = package(tmp_path, small_on_kubernetes)
    assert "secretAsEnv" in path.read_text(encoding="utf-8")
    assert ran(settings, path, "run-1") is None
    assert "noted run-1" in (settings.home / "logs" / "kfp-run-1.log").read_text()


def test_a_run_that_fails_prunes_too_and_keeps_what_it_left(tmp_path):
    settings = load_settings({"HEADRACE_HOME": str(tmp_path / "home")})
    old_runs(settings.home / "kfp", KEPT_RUNS)
    problem = ran(settings, package(tmp_path), "run-99", line="broken")
    assert problem is not None
    assert "note" in problem
    left = {path.name for path in (settings.home / "kfp").iterdir()}
    assert len(left) == KEPT_RUNS
    assert "run-99" in left
    assert "no such line" in (settings.home / "logs" / "kfp-run-99.log").read_text()


def test_a_run_that_goes_on_is_never_pruned(tmp_path):
    long, *others = old_runs(tmp_path, 5)
    with (long / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        prune(tmp_path, keep=1)
        assert sorted(tmp_path.iterdir()) == sorted([long, others[-1]])
    prune(tmp_path, keep=1)
    assert len(list(tmp_path.iterdir())) == 1
