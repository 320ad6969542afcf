"""Feast's configuration of a home: rendered from `feature_repo/`, opened with these settings.

The rendered file never holds the URL of a Redis, which may carry a password: Feast expands
`${HEADRACE_ONLINE_STORE}` from the environment, `open_config` from the settings.
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
SPARK_OVERLAY: Final = "offline_spark.yaml"


def render(settings: Settings) -> str:
    """Text of `<home>/feast/feature_store.yaml`: the repository's, with the stores that are set."""
    template = settings.feature_repo / FILE
    text = string.Template(template.read_text(encoding="utf-8")).safe_substitute(
        HEADRACE_HOME=settings.home
    )
    overlays = [REDIS_OVERLAY] if settings.online_store else []
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

    rendered = _online_type(path.read_text(encoding="utf-8"))
    wanted = _online_type(render(settings))
    if rendered != wanted:
        raise EnvironmentFault(
            f"{path} was written for online store {rendered!r}, but the settings ask for "
            f"{wanted!r} ({settings.online_store_name}); set HEADRACE_ONLINE_STORE as it was, or "
            "restart the stack (`headrace up`)"
        )
    text = string.Template(path.read_text(encoding="utf-8")).safe_substitute(
        HEADRACE_ONLINE_STORE=settings.online_store
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


def _online_type(text: str) -> Any:
    return yaml.safe_load(text)["online_store"]["type"]
