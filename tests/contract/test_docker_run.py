"""Pipelines in containers: what a container is given, and what is told where none can run.

No `from __future__ import annotations`: kfp reads the components' signatures.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import compiler, dsl

from components import IMAGE
from headrace.errors import EnvironmentFault
from headrace.launch import run_pipeline
from headrace.launch.containers import LABEL, docker_runner, images_of
from headrace.launch.local import run_here
from headrace.settings import PROJECT, Settings, load_settings
from tests.engine import Engine, serving


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def note(line: str) -> str:
    import os

    if line == "broken":
        raise ValueError("no such line")
    print("noted in", os.environ["HEADRACE_HOME"], os.environ["HEADRACE_PROFILE"])  # noqa: T201
    return line


@dsl.pipeline(name="small")
def small(line: str) -> None:
    note(line=line)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with serving() as made:
        monkeypatch.setenv("DOCKER_HOST", made.url)
        made.images = [IMAGE]
        yield made


def package(folder: Path) -> Path:
    path = folder / "small.yaml"
    compiler.Compiler().compile(small, str(path))
    return path


def here(folder: Path) -> Settings:
    return load_settings({"HEADRACE_HOME": str(folder / "home"), "HEADRACE_RUNNER": "docker"})


def ran(folder: Path, line: str = "tiny") -> tuple[str | None, str]:
    """What failed, and the log."""
    log = folder / "home" / "logs" / "kfp-run-1.log"
    problem = run_here(here(folder), package(folder), "run-1", {"line": line}, log)
    return problem, log.read_text(encoding="utf-8")


def test_a_component_runs_in_the_image_with_these_settings_folders_and_user(engine, tmp_path):
    problem, log = ran(tmp_path)
    assert problem is None
    assert f"noted in {tmp_path}/home local" in log
    (asked,) = engine.created
    assert (asked["Image"], asked["Labels"]) == (IMAGE, {LABEL: "run-1"})
    assert asked["User"] == f"{os.getuid()}:{os.getgid()}"
    assert asked["HostConfig"]["NetworkMode"] == "host"
    assert not any(one.startswith(("PATH=", "PYTHONPATH=")) for one in asked["Env"])
    folders = {one["Target"]: one["ReadOnly"] for one in asked["HostConfig"]["Mounts"]}
    lines, features = str(PROJECT / "lines"), str(PROJECT / "feature_repo")
    assert folders == {f"{tmp_path}/home": False, lines: True, features: True}
    assert not any(one.get("Source") != one["Target"] for one in asked["HostConfig"]["Mounts"])


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_component_that_fails_is_told_also_when_its_container_is_gone(
    engine, tmp_path, forgetful
):
    engine.forgetful = forgetful
    problem, log = ran(tmp_path, "broken")
    assert problem is not None
    assert "c0 ended with 1" in problem if forgetful else "note" in problem
    assert "no such line" in log


def test_what_still_runs_at_the_end_is_stopped(engine, tmp_path):
    engine.running = ["c7"]
    (tmp_path / "home").mkdir()
    runner = docker_runner(here(tmp_path), package(tmp_path), "run-1")
    with pytest.raises(KeyboardInterrupt), runner:
        raise KeyboardInterrupt
    assert engine.stopped == ["c7"]


def test_a_missing_image_is_told_with_what_builds_it(engine, tmp_path):
    engine.images = []
    with pytest.raises(EnvironmentFault, match=r"pull access denied.*--target worker") as refused:
        ran(tmp_path)
    assert refused.value.exit_code == 4
    assert engine.pulled == [IMAGE.partition(":")[0]]
    assert engine.created == []


def test_without_an_engine_the_fault_and_its_remedy_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EnvironmentFault, match=r"HEADRACE_RUNNER=docker: no .*DOCKER_HOST") as told:
        run_pipeline(here(tmp_path), "incremental_train", "coupons")
    assert told.value.exit_code == 4


def test_every_component_of_ours_runs_in_the_projects_image():
    for path in (PROJECT / "pipelines" / "compiled").glob("*.yaml"):
        assert images_of(path) == [IMAGE]


@pytest.mark.slow
def test_a_real_engine_runs_it_in_the_projects_image(tmp_path):
    import docker

    try:
        client = docker.from_env()
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        pytest.skip(f"the engine has no {IMAGE}; build infra/images/Dockerfile --target worker")
    except docker.errors.DockerException as problem:
        pytest.skip(f"no container engine answers: {problem}")
    problem, log = ran(tmp_path)
    assert problem is None
    assert f"noted in {tmp_path}/home local" in log
    refused, _ = ran(tmp_path, "broken")
    assert refused is not None
