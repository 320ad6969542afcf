"""A profile: one YAML file that says which parts a stack stands on, whatever its lines.

Each key is a setting's variable without `HEADRACE_`, in lower case: `online_store` sets
`HEADRACE_ONLINE_STORE`. A value may take parts from the environment as `${NAME}`, and a secret
must: a profile lies in git.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from headrace.errors import DeclarationError, shortened

PREFIX: Final = "HEADRACE_"
KEYS: Final = frozenset((
    "event_log", "online_store", "offline_store", "registry", "line_store", "mlflow_uri",
    "airflow_database", "kfp_endpoint", "kfp_token", "kfp_secret", "kfp_volume", "score_token",
    "admin_token", "collect_token", "alarm_command", "host", "server_port", "grpc_port",
    "collector_port", "airflow_port", "learner_port", "min_free_mb", "kafka_jars", "s3a_jars",
    "training_slots",
    "runner", "kafka_security_protocol", "kafka_sasl_mechanism", "kafka_sasl_username",
    "kafka_sasl_password", "kafka_ssl_ca_location",
))  # fmt: skip
SECRETS: Final = frozenset({
    "kfp_token", "score_token", "admin_token", "collect_token", "kafka_sasl_password",
})  # fmt: skip
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
_REFERENCE: Final = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")


def with_profile(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment over the profile that `HEADRACE_PROFILE` names, `local` by default.

    A variable that is set wins over the profile's key, an empty one too. Raises
    `DeclarationError` naming the key, the value and the remedy.
    """
    name = environ.get("HEADRACE_PROFILE") or "local"
    path = folder / f"{name}.yaml"
    if not _NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise DeclarationError(
            f"HEADRACE_PROFILE={name!r} names no file in {folder}; there are: {known}"
        )
    return _variables(path, _read(path), environ) | dict(environ)


def _read(path: Path) -> dict[str, object]:
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        told = " ".join(str(problem).split())
        raise DeclarationError(f"{path}: not readable as YAML: {told}; correct it") from None
    if body is None:  # nothing but comments: all defaults
        return {}
    if not isinstance(body, dict):
        raise DeclarationError(f"{path}: a profile is a mapping of keys; see profiles/local.yaml")
    return body


def _variables(
    path: Path, body: Mapping[str, object], environ: Mapping[str, str]
) -> dict[str, str]:
    found = {}
    for key, value in body.items():
        if key not in KEYS:
            raise DeclarationError(
                f"{path}: {key}: unknown key; remove it, or write one of {', '.join(sorted(KEYS))}"
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DeclarationError(
                f"{path}: {key}: {shortened(value)} is neither a text nor a number"
            )
        variable = PREFIX + key.upper()
        if variable in environ:
            continue
        text = str(value)
        _refuse_secrets(path, key, text)
        for name in _REFERENCE.findall(text):
            text = text.replace(f"${{{name}}}", _given(path, key, name, environ))
        found[variable] = text
    return found


def _refuse_secrets(path: Path, key: str, text: str) -> None:
    """A password or token that is written out; the error does not repeat it."""
    secret = text if key in SECRETS else _password(text)
    if secret and not _REFERENCE.fullmatch(secret):
        raise DeclarationError(
            f"{path}: {key}: holds a secret; keep it in the environment and write ${{NAME}} here"
        )


def _password(url: str) -> str:
    """What stands between the user and the host of a URL."""
    return url.partition("://")[2].rpartition("@")[0].partition(":")[2]


def _given(path: Path, key: str, name: str, environ: Mapping[str, str]) -> str:
    if not environ.get(name):
        raise DeclarationError(
            f"{path}: {key}: ${{{name}}} is not set; put it into the environment"
        )
    return environ[name]
