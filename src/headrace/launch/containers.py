"""Run a pipeline's components in containers of this machine: kfp's runner, and what it leaves out.

kfp pulls what is missing without a word of what to build, takes a container that was removed
before it asked for one that went well, and leaves those that run when it is interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from headrace.errors import EnvironmentFault
from headrace.settings import Settings

LABEL: Final = "headrace.run"
BUILD: Final = "docker build -f infra/images/Dockerfile --target worker -t {} ."
_PASSED_ON: Final = ("HEADRACE_", "AWS_")


@contextmanager
def docker_runner(settings: Settings, package: Path, run: str) -> Iterator[Any]:
    """kfp's `DockerRunner` for the images of a package; at the end no container of it is left.

    Raises `EnvironmentFault` where no engine answers or an image is neither here nor to be had,
    `RuntimeError`, as kfp does, for a container that ended with another status than 0.
    """
    import docker
    from docker.errors import DockerException
    from kfp import local
    from requests.exceptions import RequestException

    try:
        client = docker.from_env()
        try:
            client.ping()
            for image in images_of(package):
                _require(client, image)
            since = int(time.time())
            try:
                yield local.DockerRunner(**_given(settings, run))
            finally:
                _stop(client, run)
            _raise_for_failures(client, run, since)
        finally:
            client.close()
    except (DockerException, RequestException) as problem:
        said = str(problem).partition("\n")[0]
        raise EnvironmentFault(
            f"HEADRACE_RUNNER=docker: no container engine does this here ({said}); start one, "
            "name it by DOCKER_HOST, or leave HEADRACE_RUNNER out for processes"
        ) from None


def images_of(package: Path) -> list[str]:
    """The images that a compiled pipeline names, each once."""
    first = next(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    executors = first["deploymentSpec"]["executors"].values()
    return sorted({executor["container"]["image"] for executor in executors})


def _require(client: Any, image: str) -> None:
    """Have the image here, pulled if need be."""
    from docker.errors import APIError, ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except APIError as problem:
            raise EnvironmentFault(
                f"HEADRACE_RUNNER=docker: the image {image} is not here and cannot be pulled "
                f"({problem.explanation or type(problem).__name__}); build it: "
                + BUILD.format(image)
            ) from None


def _stop(client: Any, run: str) -> None:
    """End what still runs; one that is being removed just now is as good as gone."""
    from docker.errors import NotFound

    mine = {"label": f"{LABEL}={run}"}
    for container in client.containers.list(filters=mine, ignore_removed=True):
        with suppress(NotFound):
            container.stop(timeout=10)


def _given(settings: Settings, run: str) -> dict[str, Any]:
    """What a container gets: these settings, the folders that they name, this user and network."""
    from docker.types import Mount

    environment = {n: v for n, v in os.environ.items() if n.startswith(_PASSED_ON)}
    writable = [settings.home, *_folder(settings.line_store)]
    folders = [(path, False) for path in writable]
    folders += [(path, True) for path in (settings.lines_dir, settings.feature_repo)]
    return {
        "environment": environment
        | {"HEADRACE_PROFILE": settings.profile, "HOME": "/tmp", "TF_CPP_MIN_LOG_LEVEL": "2"},  # noqa: S108
        "mounts": [
            Mount(target=str(path), source=str(path), type="bind", read_only=read_only)
            for path, read_only in folders
            if path.exists()
        ],
        "user": f"{os.getuid()}:{os.getgid()}",
        "network_mode": "host",  # parts on loopback are parts of the settings
        "labels": {LABEL: run},
    }


def _folder(store: str | None) -> list[Path]:
    """The folder of a line store that is one."""
    parts = urlsplit(store or "")
    return [Path(parts.path)] if parts.scheme == "file" else []


def _raise_for_failures(client: Any, run: str, since: int) -> None:
    """What the engine remembers of the run's containers, kfp's word on them aside."""
    died = client.events(
        since=since,
        until=int(time.time()) + 1,
        filters={"event": "die", "label": f"{LABEL}={run}"},
        decode=True,
    )
    for event in died:
        told = event["Actor"]["Attributes"]
        if told.get("exitCode") != "0":
            raise RuntimeError(f"container {told.get('name')} ended with {told.get('exitCode')}")
