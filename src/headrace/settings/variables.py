"""What each variable may hold.

A value that does not fit ends in a `DeclarationError` that names the variable and the remedy, and
shows no password and no token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from headrace.errors import DeclarationError
from headrace.settings.values import Cluster, PodSecret

OFFLINE_STORES: Final = ("duckdb", "spark")
RUNNERS: Final = ("subprocess", "docker")
_TRACKING: Final = ("sqlite", "postgresql", "mysql", "http", "https")
_REDIS_DATABASE: Final = re.compile(r"(/\d*)?")
_NOT_IN_A_URL: Final = re.compile(r"[\s'\"$\\]")
_TOKEN: Final = re.compile(r"[!-~]{16,512}")
_POD_SECRET: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)/(?P<keys>[A-Z][A-Z0-9_]*(,[A-Z][A-Z0-9_]*)*)"
)
_OBJECT: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[\w.=-]+)+")
_CLAIM: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def port(env: Mapping[str, str], name: str, default: int) -> int:
    """A port that can be listened on."""
    text = env.get(name) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DeclarationError(f"{name}={text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def megabytes(env: Mapping[str, str], name: str, default: int) -> int:
    """Bytes of a size that is written in MiB."""
    text = env.get(name) or str(default)
    if not text.isdecimal():
        raise DeclarationError(f"{name}={text!r} is not a size; give whole MiB, 0 for none")
    return int(text) * 2**20


def slots(env: Mapping[str, str], name: str, default: int) -> int:
    """How many trainings may run at once."""
    text = env.get(name) or str(default)
    if not text.isdecimal() or not 0 < int(text) <= 64:
        raise DeclarationError(f"{name}={text!r} is no number of trainings at once; give 1 to 64")
    return int(text)


def pod_secret(text: str | None) -> PodSecret | None:
    """Names alone; an error never shows the text, as somebody may have written a value."""
    if text is None:
        return None
    found = _POD_SECRET.fullmatch(text)
    if found is None:
        raise DeclarationError(
            "HEADRACE_KFP_SECRET names no keys of a Secret; write NAME/KEY,KEY, where each KEY is "
            "also the variable that a pipeline's containers get, and never a value; or leave the "
            "variable out for none"
        )
    return PodSecret(found["name"], tuple(found["keys"].split(",")))


def claim(name: str | None) -> str | None:
    """A claim of a volume in a cluster."""
    if name is not None and not _CLAIM.fullmatch(name):
        raise DeclarationError(
            f"HEADRACE_KFP_VOLUME={name!r} is no name of a volume claim; write one that "
            "`kubectl get pvc` prints, or leave the variable out for none"
        )
    return name


def database(env: Mapping[str, str], name: str, otherwise: str) -> str | None:
    """A PostgreSQL's URL; an error never shows it, as it may hold a password."""
    url = env.get(name) or None
    if url is not None and not re.fullmatch(r"postgresql\+psycopg://[^\s'\"$\\]+/\w+", url):
        raise DeclarationError(
            f"{name} names no PostgreSQL; write postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME, "
            f"the password percent-encoded, or leave the variable out for {otherwise}"
        )
    return url


def registry(env: Mapping[str, str]) -> str | None:
    """Feast's registry: an object of S3, or a PostgreSQL; None: a file below the home."""
    url = env.get("HEADRACE_REGISTRY") or ""
    if not url.startswith("s3:"):
        return database(
            env, "HEADRACE_REGISTRY", "a file below HEADRACE_HOME, or write s3://BUCKET/KEY"
        )
    if not _OBJECT.fullmatch(url):
        raise DeclarationError(
            f"HEADRACE_REGISTRY={url.rpartition('@')[2]!r} names no object of S3; write "
            "s3://BUCKET/KEY, such as s3://headrace/feast/registry.db; credentials go into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url


def token(env: Mapping[str, str], name: str) -> str | None:
    """A secret that can stand in a header; an error never shows it."""
    text = env.get(name) or None
    if text is not None and not _TOKEN.fullmatch(text):
        raise DeclarationError(
            f"{name} ({len(text)} characters) is no token; give 16 to 512 printable ASCII "
            "characters without spaces, such as `openssl rand -hex 32` prints"
        )
    return text


def cluster(text: str | None) -> Cluster | None:
    """What `TF_CONFIG` says, TensorFlow's own way to tell a process its place; None for one alone.

    `chief`, where there is one, comes before the `worker`s; an `evaluator` trains nothing.
    """
    if text is None:
        return None
    try:
        told = json.loads(text)
        kinds, task = told["cluster"], told["task"]
        places = [
            (kind, at) for kind in ("chief", "worker") for at in range(len(kinds.get(kind, ())))
        ]
        index = places.index((task["type"], int(task["index"])))
        addresses = tuple(str(kinds[kind][at]) for kind, at in places)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DeclarationError(
            f"TF_CONFIG={text!r} names no worker of a group; give "
            '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}, '
            "or leave it out"
        ) from None
    return Cluster(addresses, index) if len(addresses) > 1 else None


def redis_url(url: str | None) -> str | None:
    """The URL if it is one of Redis; an error shows its host, never its password."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        fits = fits and not parts.query and not parts.fragment
    except ValueError:  # a port that is no number, an address that is none
        fits = False
    if not fits or not _REDIS_DATABASE.fullmatch(parts.path) or _NOT_IN_A_URL.search(url):
        _, at, shown = url.rpartition("@")
        shown = f"…@{shown}" if at else shown.partition("?")[0]
        raise DeclarationError(
            f"HEADRACE_ONLINE_STORE={shown!r} is not the URL of a Redis; write "
            "redis://HOST:PORT/DATABASE, rediss:// for TLS, a password as redis://:PASSWORD@HOST… "
            "percent-encoded; or leave the variable out for SQLite"
        )
    return url


def offline_store(name: str) -> str:
    """The engine that joins features of the past."""
    if name not in OFFLINE_STORES:
        raise DeclarationError(
            f"HEADRACE_OFFLINE_STORE={name!r} is not an offline store; set one of "
            f"{', '.join(OFFLINE_STORES)}, or leave the variable out for duckdb"
        )
    return name


def runner(name: str) -> str:
    """What runs the steps of a pipeline on this machine."""
    if name not in RUNNERS:
        raise DeclarationError(
            f"HEADRACE_RUNNER={name!r} runs no pipeline; set one of {', '.join(RUNNERS)}, or "
            "HEADRACE_KFP_ENDPOINT for a cluster"
        )
    return name


def store_url(text: str | None) -> str | None:
    """`file:///folder` or `s3://bucket/prefix`, without a slash at the end; None when not given."""
    if not text:
        return None
    parts = urlsplit(text)
    wanted = "give file:///folder or s3://bucket/prefix, or leave it empty for HEADRACE_HOME"
    if parts.password or parts.username:
        raise DeclarationError(
            "HEADRACE_LINE_STORE holds credentials; give them by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme not in ("file", "s3") or not (
        parts.netloc if parts.scheme == "s3" else parts.path.strip("/")
    ):
        raise DeclarationError(f"HEADRACE_LINE_STORE={text!r} names no store; {wanted}")
    return text.rstrip("/")


def tracking_uri(text: str | None) -> str | None:
    """Where MLflow is: a server or a database; an error never shows it."""
    if not text:
        return None
    if urlsplit(text).scheme.split("+")[0] not in _TRACKING:
        raise DeclarationError(
            "HEADRACE_MLFLOW_URI names no server and no database; give http://host:port, "
            "sqlite:////folder/mlflow.db or postgresql://…, or leave it empty for no MLflow"
        )
    return text
