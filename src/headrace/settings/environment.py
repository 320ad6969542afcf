"""The settings as the environment says them, over its profile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.profile import with_profile
from headrace.settings.kafka import kafka_log, kafka_security
from headrace.settings.values import Settings
from headrace.settings.variables import (
    claim,
    cluster,
    database,
    megabytes,
    offline_store,
    pod_secret,
    port,
    redis_url,
    registry,
    runner,
    slots,
    store_url,
    token,
    tracking_uri,
)

PROJECT: Final = Path(__file__).resolve().parents[3]
PROFILES: Final = PROJECT / "profiles"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `HEADRACE_*` from the environment (or the given mapping), over its profile."""
    env = with_profile(os.environ if environ is None else environ, PROFILES)

    def path(name: str, default: Path) -> Path:
        return Path(env.get(name) or default).resolve()

    return Settings(
        home=path("HEADRACE_HOME", PROJECT / "out" / "stack"),
        lines_dir=path("HEADRACE_LINES_DIR", PROJECT / "lines"),
        feature_repo=path("HEADRACE_FEATURE_REPO", PROJECT / "feature_repo"),
        host=env.get("HEADRACE_HOST") or "127.0.0.1",
        server_port=port(env, "HEADRACE_SERVER_PORT", 8500),
        grpc_port=port(env, "HEADRACE_GRPC_PORT", 8502),
        collector_port=port(env, "HEADRACE_COLLECTOR_PORT", 8501),
        airflow_port=port(env, "HEADRACE_AIRFLOW_PORT", 8080),
        min_free_bytes=megabytes(env, "HEADRACE_MIN_FREE_MB", 256),
        line_store=store_url(env.get("HEADRACE_LINE_STORE")),
        mlflow_uri=tracking_uri(env.get("HEADRACE_MLFLOW_URI")),
        kfp_endpoint=env.get("HEADRACE_KFP_ENDPOINT") or None,
        kfp_token=env.get("HEADRACE_KFP_TOKEN") or None,
        kafka_jars=path("HEADRACE_KAFKA_JARS", PROJECT / "out" / "kafka" / "spark"),
        s3a_jars=path("HEADRACE_S3A_JARS", PROJECT / "out" / "s3a"),
        online_store=redis_url(env.get("HEADRACE_ONLINE_STORE") or None),
        learner_port=port(env, "HEADRACE_LEARNER_PORT", 8503),
        offline_store=offline_store(env.get("HEADRACE_OFFLINE_STORE") or "duckdb"),
        alarm_command=env.get("HEADRACE_ALARM_COMMAND") or None,
        cluster=cluster(env.get("TF_CONFIG") or None),
        score_token=token(env, "HEADRACE_SCORE_TOKEN"),
        admin_token=token(env, "HEADRACE_ADMIN_TOKEN"),
        collect_token=token(env, "HEADRACE_COLLECT_TOKEN"),
        profile=env.get("HEADRACE_PROFILE") or "local",
        event_log=kafka_log(env.get("HEADRACE_EVENT_LOG") or None),
        kafka_security=kafka_security(env),
        registry=registry(env),
        airflow_database=database(env, "HEADRACE_AIRFLOW_DATABASE", "SQLite"),
        kfp_secret=pod_secret(env.get("HEADRACE_KFP_SECRET") or None),
        kfp_volume=claim(env.get("HEADRACE_KFP_VOLUME") or None),
        training_slots=slots(env, "HEADRACE_TRAINING_SLOTS", 1),
        runner=runner(env.get("HEADRACE_RUNNER") or "subprocess"),
    )


def java_command(environ: Mapping[str, str] | None = None) -> str:
    """The Java that Spark would start: the one in `JAVA_HOME`, otherwise the one on PATH."""
    home = (os.environ if environ is None else environ).get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else "java"
