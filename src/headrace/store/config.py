"""Feast's configuration of a home: rendered from `feature_repo/`, opened with these settings.

The rendered file never holds the URL of a Redis or a registry, which may carry a password: Feast
expands `${HEADRACE_ONLINE_STORE}` and `${HEADRACE_REGISTRY}` from the environment, `open_config`
from the settings.
"""

from __future__ import annotations

import sqlite3
import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import yaml

from headrace.errors import EnvironmentFault
from headrace.settings import Settings

if TYPE_CHECKING:
    from feast import RepoConfig

FILE: Final = "feature_store.yaml"
REDIS_OVERLAY: Final = "online_redis.yaml"
SQL_OVERLAY: Final = "registry_sql.yaml"
S3_OVERLAY: Final = "registry_s3.yaml"
SPARK_OVERLAY: Final = "offline_spark.yaml"


def render(settings: Settings) -> str:
    """Text of `<home>/feast/feature_store.yaml`: the repository's, with the stores that are set."""
    template = settings.feature_repo / FILE
    text = string.Template(template.read_text(encoding="utf-8")).safe_substitute(
        HEADRACE_HOME=settings.home
    )
    overlays = [REDIS_OVERLAY] if settings.online_store else []
    if settings.registry:
        overlays.append(S3_OVERLAY if settings.registry.startswith("s3:") else SQL_OVERLAY)
    overlays += [SPARK_OVERLAY] if settings.offline_store == "spark" else []
    if not overlays:
        return text
    config = yaml.safe_load(text)
    for name in overlays:
        config |= yaml.safe_load((settings.feature_repo / name).read_text(encoding="utf-8"))
    return yaml.safe_dump(config, sort_keys=False)


def open_config(settings: Settings, timeout_s: float | None = None) -> RepoConfig:
    """The home's configuration. Raises `EnvironmentFault` where it was rendered otherwise.

    `timeout_s`: how long an answer of the online store is waited for, by default as it says itself.
    """
    folder = settings.home / "feast"
    path = folder / FILE
    if not path.exists():
        raise EnvironmentFault(f"{folder} holds no {FILE}; start the stack once (`headrace up`)")
    from feast import RepoConfig

    rendered, wanted = (
        _types(written) for written in (path.read_text(encoding="utf-8"), render(settings))
    )
    if rendered != wanted:
        raise EnvironmentFault(
            f"{path} was written for {rendered}, but the settings ask for {wanted} "
            f"({settings.online_store_name}); set HEADRACE_ONLINE_STORE and HEADRACE_REGISTRY as "
            "they were, or restart the stack (`headrace up`)"
        )
    text = string.Template(path.read_text(encoding="utf-8")).safe_substitute(
        HEADRACE_ONLINE_STORE=settings.online_store, HEADRACE_REGISTRY=settings.registry
    )
    body = yaml.safe_load(text)
    if timeout_s is not None:
        body["online_store"]["timeout_s"] = timeout_s
    config = RepoConfig(**body)
    config.repo_path = folder
    return config


@contextmanager
def online_faults(settings: Settings) -> Iterator[None]:
    """Turn what the online store raises into an `EnvironmentFault` that says where it should be."""
    if settings.online_store is None:
        try:
            yield
        except sqlite3.Error as problem:
            raise EnvironmentFault(
                f"online store {settings.online_store_name}: {problem}; end what locks its file, "
                "or remove a damaged one and restart the stack (`headrace up`)"
            ) from problem
        return
    from redis import RedisError

    try:
        yield
    except RedisError as problem:
        raise EnvironmentFault(
            f"online store {settings.online_store_name}: {str(problem).rstrip('.')}; start Redis "
            "there or correct HEADRACE_ONLINE_STORE"
        ) from problem


@contextmanager
def registry_faults(settings: Settings) -> Iterator[None]:
    """Turn what a registry elsewhere raises into an `EnvironmentFault` that says where it is."""
    if settings.registry is None:
        yield
        return
    from botocore.exceptions import BotoCoreError, ClientError
    from feast.errors import S3RegistryBucketForbiddenAccess, S3RegistryBucketNotExist
    from sqlalchemy.exc import SQLAlchemyError

    away = (S3RegistryBucketForbiddenAccess, S3RegistryBucketNotExist)
    try:
        yield
    except (BotoCoreError, ClientError, SQLAlchemyError, *away) as problem:
        said = str(problem).partition("\n")[0].rstrip(".")
        raise EnvironmentFault(
            f"registry {settings.registry_name}: {said}; start it there, make its bucket or "
            "database, or correct HEADRACE_REGISTRY"
        ) from problem


def _types(text: str) -> str:
    body = yaml.safe_load(text)
    return f"online store {body['online_store']['type']!r}, {_registry(body)} registry"


def _registry(body: dict[str, Any]) -> str:
    registry = body["registry"]
    on_s3 = registry["registry_type"] == "file" and registry["path"] == "${HEADRACE_REGISTRY}"
    return "s3" if on_s3 else str(registry["registry_type"])
