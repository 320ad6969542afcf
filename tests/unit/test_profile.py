"""Profiles: keys become variables, the environment wins, secrets are references."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.errors import DeclarationError
from headrace.profile import KEYS, with_profile
from headrace.settings import PROFILES, PROJECT, load_settings

SECRETS = {
    f"HEADRACE_{name}": f"{name.lower()}-0123456789"
    for name in (
        *("KAFKA_SASL_PASSWORD", "REDIS_PASSWORD", "POSTGRES_PASSWORD"),
        *("KFP_TOKEN", "SCORE_TOKEN", "ADMIN_TOKEN", "COLLECT_TOKEN"),
    )
}


def read(folder: Path, text: str, **environ: str) -> dict[str, str]:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return with_profile({"HEADRACE_PROFILE": "mine"} | environ, folder)


def test_without_a_profile_nothing_but_this_machine_is_used():
    settings = load_settings({})
    parts = (settings.event_log, settings.online_store, settings.registry, settings.line_store)
    assert parts == (None, None, None, None)
    assert settings.profile == "local"


def test_services_and_cluster_name_every_part_of_their_own():
    services = load_settings({"HEADRACE_PROFILE": "services"} | SECRETS)
    assert services.event_log is not None
    assert services.event_log.topic("coupons") == "headrace.coupons.events"
    assert services.online_store == "redis://:redis_password-0123456789@127.0.0.1:6479/0"
    databases = (services.registry, services.airflow_database, services.mlflow_uri)
    assert [str(url).rpartition("/")[2] for url in databases] == ["feast", "airflow", "mlflow"]
    assert services.host == "127.0.0.1"
    secured = services.kafka_security
    assert (secured.protocol, secured.username) == ("SASL_PLAINTEXT", "headrace")
    assert secured.password == SECRETS["HEADRACE_KAFKA_SASL_PASSWORD"]
    cluster = load_settings({"HEADRACE_PROFILE": "cluster"} | SECRETS)
    assert (cluster.offline_store, cluster.host) == ("spark", "0.0.0.0")
    assert cluster.kafka_security.protocol == "SASL_SSL"
    assert cluster.score_token == "score_token-0123456789"
    for secret in SECRETS.values():
        assert secret not in repr(services)
        assert secret not in repr(cluster)


def test_a_variable_wins_over_the_profile_and_an_empty_one_takes_the_default(tmp_path):
    environ = {"HEADRACE_PROFILE": "services", "HEADRACE_ONLINE_STORE": ""} | SECRETS
    assert load_settings(environ).online_store is None
    found = read(tmp_path, "server_port: 9000\n", HEADRACE_SERVER_PORT="9001")
    assert found["HEADRACE_SERVER_PORT"] == "9001"
    # what is overridden needs no secret
    text = "online_store: redis://:${ABSENT}@h:1/0"
    assert read(tmp_path, text, HEADRACE_ONLINE_STORE="")["HEADRACE_ONLINE_STORE"] == ""


def source_of_the_settings() -> str:
    folder = PROJECT / "src" / "headrace" / "settings"
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))


def test_a_variable_that_is_set_to_nothing_is_not_set():
    names = set(re.findall(r'"(HEADRACE_[A-Z0-9_]+)"', source_of_the_settings()))
    assert {"HEADRACE_HOST", "HEADRACE_FEATURE_REPO", "HEADRACE_SERVER_PORT"} <= names
    assert load_settings(dict.fromkeys(names, "")) == load_settings({})


def test_every_key_of_a_profile_is_read_by_the_settings():
    source = source_of_the_settings()
    assert [key for key in sorted(KEYS) if f'"HEADRACE_{key.upper()}"' not in source] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("onlin_store: x", "onlin_store: unknown key"),
        ("server_port: true", "server_port: True is neither"),
        ("server_port: [1]", r"server_port: \[1\] is neither"),
        ("- a", "a profile is a mapping"),
        ("a: [", "not readable as YAML"),
        ("online_store: redis://:hunter2@h:1/0", "online_store: holds a secret"),
        ("mlflow_uri: postgresql://me:hunter2@h/db", "mlflow_uri: holds a secret"),
        ("score_token: hunter2-hunter2-hunter2", "score_token: holds a secret"),
        ("kafka_sasl_password: hunter2", "kafka_sasl_password: holds a secret"),
        ("score_token: x${HEADRACE_SCORE_TOKEN}", "score_token: holds a secret"),
        ("online_store: redis://:${ABSENT}@h:1/0", r"\$\{ABSENT\} is not set"),
    ],
)
def test_a_wrong_profile_is_refused_by_name_and_shows_no_secret(tmp_path, text, told):
    with pytest.raises(DeclarationError, match=told) as refused:
        read(tmp_path, text)
    assert "hunter2" not in str(refused.value)
    assert "mine.yaml" in str(refused.value)


@pytest.mark.parametrize("name", ["nowhere", "../profiles/local", "Local"])
def test_an_unknown_profile_is_told_which_there_are(name):
    with pytest.raises(DeclarationError, match="there are: cluster, local, services"):
        with_profile({"HEADRACE_PROFILE": name}, PROFILES)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADRACE_EVENT_LOG", "kafka://host/topic"),
        ("HEADRACE_EVENT_LOG", "files:here"),
        ("HEADRACE_EVENT_LOG", "kafka://h:1/a/b"),
        ("HEADRACE_REGISTRY", "postgresql://u:hunter2@h/db"),
        ("HEADRACE_AIRFLOW_DATABASE", "sqlite:///hunter2"),
        ("HEADRACE_TRAINING_SLOTS", "0"),
        ("HEADRACE_TRAINING_SLOTS", "two"),
        ("HEADRACE_RUNNER", "podman"),
    ],
)
def test_places_that_are_none_are_refused(variable, value):
    with pytest.raises(DeclarationError, match=variable) as refused:
        load_settings({variable: value})
    assert "hunter2" not in str(refused.value)
