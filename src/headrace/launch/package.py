"""The YAML of a pipeline as a cluster gets it: as compiled, with what is asked for added."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from headrace.atomic import write_text
from headrace.declaration import LineSpec, ResourcesSpec
from headrace.errors import EnvironmentFault
from headrace.launch.platform import platform_of
from headrace.settings import PROJECT, Settings

COMPILED: Final = PROJECT / "pipelines" / "compiled"
TRAINING: Final = "exec-train"


def compiled(pipeline: str) -> Path:
    """The YAML of a pipeline. Raises `EnvironmentFault` where it is missing."""
    package = COMPILED / f"{pipeline}.yaml"
    if not package.exists():
        raise EnvironmentFault(
            f"{package} is missing; run python -m pipelines.{pipeline} --compile"
        )
    return package


def package_of(settings: Settings, spec: LineSpec, pipeline: str) -> Path:
    """The YAML to submit for a line: that of `compiled`, unless something is asked of the cluster.

    The line's `resources`, the profile's secret and volume: then a copy below `<home>/packages`,
    whose containers ask for them. (kfp 2.17 takes them as parameters of a pipeline on a cluster,
    but its local runner refuses such a pipeline.)
    """
    package = compiled(pipeline)
    if spec.resources == ResourcesSpec() and not (settings.kfp_secret or settings.kfp_volume):
        return package
    document: dict[str, Any] = yaml.safe_load(package.read_text(encoding="utf-8"))
    executors = document["deploymentSpec"]["executors"]
    platform = platform_of(settings, spec.resources, executors)
    for name, executor in executors.items():
        asked = asked_for(spec.resources, training=name == TRAINING)
        container = executor["container"]
        if asked:
            container["resources"] = container.get("resources", {}) | asked
    path = settings.home / "packages" / f"{spec.line}-{pipeline}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump_all([document, platform] if platform else [document]))
    return path


def asked_for(resources: ResourcesSpec, *, training: bool) -> dict[str, Any]:
    """As the pipeline spec says it: limits, which are requests too."""
    asked: dict[str, Any] = {}
    for key, value in (("Cpu", resources.cpu), ("Memory", resources.memory)):
        if value is not None:
            asked |= {f"resource{key}Limit": value, f"resource{key}Request": value}
    if training and resources.accelerators:
        count = str(resources.accelerators)
        asked["accelerator"] = {"resourceType": resources.accelerator, "resourceCount": count}
    return asked
