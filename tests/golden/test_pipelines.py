"""Compiled pipelines are golden files: `python -m pipelines.<name> --compile` rewrites them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from headrace.launch.errands import ERRANDS
from pipelines.command import COMPILED, compile_to

TRAININGS = ("incremental_train", "full_train", "full_train_gpu")
ERRAND_NAMES = ("batch_score", "backfill_features", "write_report")
PIPELINES = (*TRAININGS, *ERRAND_NAMES, "tune")


def normalised(path: Path) -> str:
    """The YAML without the version of the SDK that compiled it."""
    return re.sub(r"^sdkVersion: .*$", "sdkVersion: any", path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("name", PIPELINES)
def test_compiled_yaml_is_the_golden_file(name: str, tmp_path: Path) -> None:
    pipeline = getattr(importlib.import_module(f"pipelines.{name}"), name)
    compile_to(pipeline, tmp_path / "compiled.yaml")
    assert normalised(tmp_path / "compiled.yaml") == normalised(COMPILED / f"{name}.yaml"), (
        f"pipelines or components changed; run python -m pipelines.{name} --compile and look at it"
    )


@pytest.mark.parametrize("name", TRAININGS)
def test_nothing_is_trained_before_the_data_gate_has_spoken(name: str) -> None:
    root = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())
    tasks = root["root"]["dag"]["tasks"]
    assert set(tasks) == {"check-data", "condition-1"}
    assert "!= 'ended'" in tasks["condition-1"]["triggerPolicy"]["condition"]


@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_is_cached_and_only_ids_are_handed_over(name: str) -> None:
    root = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())
    tasks = [
        *root["root"]["dag"]["tasks"].values(),
        *root["components"]["comp-condition-1"]["dag"]["tasks"].values(),
    ]
    assert not any(task.get("cachingOptions", {}).get("enableCache") for task in tasks)
    workers = {"workers"} if name.startswith("full_train") else set()
    assert set(root["root"]["inputDefinitions"]["parameters"]) == {"line", "run"} | workers
    for name, component in root["components"].items():
        assert "artifacts" not in component.get("inputDefinitions", {})
        shown = component.get("outputDefinitions", {}).get("artifacts", {})
        kinds = {artifact["artifactType"]["schemaTitle"] for artifact in shown.values()}
        of_evaluate = {"system.Metrics", "system.ClassificationMetrics", "system.HTML"}
        assert kinds == (of_evaluate if name == "comp-evaluate" else set())


def test_only_the_training_of_the_gpu_pipeline_asks_for_one() -> None:
    asking = {}
    for name in PIPELINES:
        executors = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())["deploymentSpec"]
        for step, executor in executors["executors"].items():
            if "resources" in executor["container"]:
                asking[name, step] = executor["container"]["resources"]["accelerator"]
    assert list(asking) == [("full_train_gpu", "exec-train")]
    assert asking["full_train_gpu", "exec-train"]["resourceType"] == "nvidia.com/gpu"
    assert asking["full_train_gpu", "exec-train"]["resourceCount"] == "1"


@pytest.mark.parametrize("name", ERRAND_NAMES)
def test_an_errand_is_one_step_of_text_which_is_never_cached(name: str) -> None:
    root = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())
    (task,) = root["root"]["dag"]["tasks"].values()
    assert not task.get("cachingOptions", {}).get("enableCache")
    given = root["root"]["inputDefinitions"]["parameters"]
    assert set(given) == {"line", *ERRANDS[name]}
    assert {one["parameterType"] for one in given.values()} == {"STRING"}
    needed = ["line"] if name == "batch_score" else ["end", "line", "start"]
    assert sorted(n for n, one in given.items() if not one.get("isOptional")) == needed
    (component,) = root["components"].values()
    shown = component["outputDefinitions"].get("artifacts", {})
    kinds = [artifact["artifactType"]["schemaTitle"] for artifact in shown.values()]
    assert kinds == (["system.HTML"] if name == "write_report" else [])


def test_a_search_fans_out_three_times_and_halves_in_between() -> None:
    root = yaml.safe_load((COMPILED / "tune.yaml").read_text())
    tasks = root["root"]["dag"]["tasks"]
    loops = [name for name in tasks if name.startswith("for-loop")]
    steps = [name for name in tasks if not name.startswith("for-loop")]
    assert len(loops) == 3
    assert {tasks[name]["iteratorPolicy"]["parallelismLimit"] for name in loops} == {4}
    assert sorted(steps) == ["begin-tuning", "conclude-tuning", "halve-trials", "halve-trials-2"]
    assert set(root["root"]["inputDefinitions"]["parameters"]) == {"line", *ERRANDS["tune"]}
    inner = [
        task
        for one in root["components"].values()
        for task in one.get("dag", {}).get("tasks", {}).values()
    ]
    assert not any(
        t.get("cachingOptions", {}).get("enableCache") for t in [*tasks.values(), *inner]
    )
