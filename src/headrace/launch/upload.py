"""Put a line's pipelines into a cluster's own list, as people and schedules there start them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.launch.cluster import NO_API, fault, talking
from headrace.launch.errands import ERRANDS
from headrace.launch.package import package_of
from headrace.launch.run import KIND_OF
from headrace.settings import Settings, find_line


@dataclass(frozen=True)
class Uploaded:
    """A pipeline as it is in the cluster's list. `fresh`: it was not there like this before.

    `name` is `<line>-<pipeline>`; `version` the first twelve digits of the package's SHA-256.
    """

    pipeline: str
    name: str
    version: str
    pipeline_id: str
    version_id: str
    fresh: bool


def pipelines_of(spec: LineSpec) -> list[str]:
    """The pipelines that a line can run; `tune` where it declares a search."""
    return [name for name in (*KIND_OF, *ERRANDS) if name != "tune" or spec.tune is not None]


def upload(settings: Settings, line: str) -> list[Uploaded]:
    """Upload the packages of a line, each as a version named by its bytes; what is there stays.

    A package asks the cluster for what the line and the profile say, so one that is changed makes
    a new version of the same pipeline. Raises `DeclarationError` for an unknown line,
    `EnvironmentFault` without an endpoint and when it cannot be reached or refuses.
    """
    spec = find_line(settings, line)
    if settings.kfp_endpoint is None:
        raise EnvironmentFault(
            "HEADRACE_KFP_ENDPOINT is not set, so there is no cluster to upload to; set it, or "
            "choose a profile that does"
        )
    packages = {name: package_of(settings, spec, name) for name in pipelines_of(spec)}
    with talking(settings) as client:
        return [
            _uploaded(settings, client, spec, pipeline, package)
            for pipeline, package in packages.items()
        ]


def _uploaded(
    settings: Settings, client: Any, spec: LineSpec, pipeline: str, package: Path
) -> Uploaded:
    name = f"{spec.line}-{pipeline}".replace("_", "-")
    version = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    pipeline_id = client.get_pipeline_id(name) or _made(client, name, spec)
    wanted = {"operation": "EQUALS", "key": "display_name", "stringValue": version}
    found = client.list_pipeline_versions(
        pipeline_id, filter=json.dumps({"predicates": [wanted]})
    ).pipeline_versions
    one = found[0] if found else client.upload_pipeline_version(str(package), version, pipeline_id)
    if not pipeline_id or not one.pipeline_version_id:
        raise fault(settings, NO_API)
    return Uploaded(
        pipeline, name, version, str(pipeline_id), str(one.pipeline_version_id), not found
    )


def _made(client: Any, name: str, spec: LineSpec) -> Any:
    """A pipeline without a version yet, so that each is named by its bytes, the first too."""
    import kfp_server_api as api

    made = api.V2beta1Pipeline(display_name=name, name=name, description=f"line {spec.line}")
    return client.pipelines.pipeline_service_create_pipeline(made).pipeline_id
