"""What the pods of a pipeline get on Kubernetes, as kfp-kubernetes says it: the platform spec.

No `from __future__ import annotations` here: kfp reads the signature of `step`.
"""

from collections.abc import Mapping
from typing import Any, Final

from headrace.declaration import ResourcesSpec
from headrace.settings import Settings

HOME_THERE: Final = "/var/lib/headrace"
"""`HEADRACE_HOME` in the project's images, where the volume is mounted."""
TRAINERS: Final = ("exec-train", "exec-try-model")


def platform_of(
    settings: Settings, resources: ResourcesSpec, executors: Mapping[str, Any]
) -> dict[str, Any]:
    """The second document of a package; empty where nothing is declared.

    Secrets are named, never read: the cluster puts their values into the pods.
    """
    plain = resources.node_selector
    labels = dict.fromkeys(executors, plain)
    labels |= {
        name: plain | resources.training_node_selector for name in TRAINERS if name in labels
    }
    found = {name: config for name in executors if (config := _config(settings, labels[name]))}
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": found}}}} if found else {}


def _config(settings: Settings, labels: Mapping[str, str]) -> dict[str, Any]:
    """What kfp-kubernetes compiles for a step that asks for all of it."""
    if not (settings.kfp_secret or settings.kfp_volume or labels):
        return {}
    from google.protobuf import json_format
    from kfp import dsl, kubernetes

    @dsl.container_component  # type: ignore[untyped-decorator]
    def step() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="any")

    @dsl.pipeline(name="any")  # type: ignore[untyped-decorator]
    def pipeline() -> None:
        task = step()
        if settings.kfp_secret:
            keys = {key: key for key in settings.kfp_secret.keys}
            kubernetes.use_secret_as_env(task, settings.kfp_secret.name, keys)
        if settings.kfp_volume:
            kubernetes.mount_pvc(task, settings.kfp_volume, HOME_THERE)
        for key, value in labels.items():
            kubernetes.add_node_selector(task, key, value)

    spec = json_format.MessageToDict(pipeline.platform_spec)
    (config,) = spec["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    return dict(config)
