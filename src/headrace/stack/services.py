"""What a stack consists of: each service's command and the question that proves it ready."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from headrace.settings import PROJECT, KafkaSecurity, Settings, find_line
from headrace.stack.airflow_home import (
    airflow_folder,
    migrate,
    set_training_pool,
    write_airflow_home,
)

DAGS = PROJECT / "dags"
LATE = timedelta(minutes=2)
"""A pass may load models and history; one that takes longer than its rhythm and this hangs."""

Ready = Callable[[datetime], bool]
Prepare = Callable[[Mapping[str, str], Path], None]


@dataclass(frozen=True)
class Service:
    """One supervised process.

    `wave`: services of a wave start together, a wave starts when the one before is ready.
    `ready(since)` asks whether the process started after `since` (UTC) does its work.
    `prepare(environ, logs)` runs to its end before the process is started.
    """

    name: str
    command: tuple[str, ...]
    wave: int
    ready: Ready
    prepare: Prepare | None = None
    url: str = ""


ServiceList = Callable[[Settings, str], tuple[Service, ...]]


def services(settings: Settings, line: str, dags: Path = DAGS) -> tuple[Service, ...]:
    """The services of a line's stack in start order: the slowest to boot first.

    The triggerer waits for samples and for runs on a cluster. It and the scheduler serve no logs
    (`--skip-serve-logs`): the API server reads the log files themselves, and two ports are saved.
    """
    headrace = str(Path(sys.executable).with_name("headrace"))
    airflow = (sys.executable, "-m", "airflow")
    api = ("api-server", "--host", settings.host, "--port", str(settings.airflow_port))
    beats = partial(_beats, settings)

    def prepare_airflow(environ: Mapping[str, str], logs: Path) -> None:
        write_airflow_home(settings, dags)
        migrate(settings, environ, logs / "airflow-migrate.log")
        set_training_pool(settings)

    def prepare_features(_environ: Mapping[str, str], _logs: Path) -> None:
        from headrace.store import Store  # Feast is heavy; only a start needs it

        Store(settings).apply()

    return (
        Service(
            "airflow-api-server",
            (*airflow, *api),
            0,
            _answers(f"{settings.airflow_url}/execution/health"),
            prepare=prepare_airflow,
            url=settings.airflow_url,
        ),
        Service(
            "ingest",
            (headrace, "ingest", "--line", line),
            0,
            _answers(f"{settings.collector_url}/health"),
            prepare=prepare_features,
            url=settings.collector_url,
        ),
        Service(
            "serve",
            (headrace, "serve", "--line", line),
            0,
            _answers(f"{settings.server_url}/v2/health/live"),
            url=settings.server_url,
        ),
        Service(
            "airflow-scheduler", (*airflow, "scheduler", "--skip-serve-logs"), 1, beats("scheduler")
        ),
        Service("airflow-dag-processor", (*airflow, "dag-processor"), 1, beats("dag_processor")),
        Service(
            "airflow-triggerer", (*airflow, "triggerer", "--skip-serve-logs"), 1, beats("triggerer")
        ),
        Service(
            "upkeep",
            (headrace, "line", "upkeep", "--line", line),
            1,
            _passed(settings.line_home(line) / "upkeep.json"),
        ),
        *_learner(settings, line, headrace),
        *_watchers(settings, line, headrace),
    )


def _learner(settings: Settings, line: str, headrace: str) -> tuple[Service, ...]:
    """The learner of a line that declares `cadence.learn`; the cycle then stands by."""
    if find_line(settings, line).cadence.learn is None:
        return ()
    command, ready = (headrace, "learn", "--line", line), _answers(f"{settings.learner_url}/health")
    return (Service("learn", command, 1, ready, url=settings.learner_url),)


def _watchers(settings: Settings, line: str, headrace: str) -> tuple[Service, ...]:
    """The guard of a line that declares one, the conductor of its races, and who scores a log."""
    spec, home = find_line(settings, line), settings.line_home(line)
    found = []
    if spec.guards:
        ready = _passed(home / "guard" / "guard.json", spec.guard.every)
        found.append(Service("guard", (headrace, "guard", "--line", line), 1, ready))
    if spec.cadence.race is not None:
        ready = _passed(home / "race" / "conductor.json", spec.cadence.race)
        found.append(Service("race", (headrace, "race", "run", "--line", line), 1, ready))
    if spec.nearline is not None:
        ready = _passed(home / "scores" / f"{spec.nearline.of}.json", spec.nearline.every)
        found.append(Service("score-log", (headrace, "score-log", "--line", line), 1, ready))
    return tuple(found)


def stack_environ(settings: Settings, stack_id: str) -> dict[str, str]:
    """The environment of every process of the stack, also of the demo's own children.

    Takes over the caller's variables but for those that would bend Airflow or Python, and
    writes the settings out, so that children see what the caller saw. Feast, once imported, asks
    Prometheus' client to keep each counter in a file, for workers of Gunicorn; none is here.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "PROMETHEUS_MULTIPROC"))
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    direct = [*filter(None, [os.environ.get("NO_PROXY")]), settings.host, "127.0.0.1", "localhost"]
    return kept | {
        "HEADRACE_STACK_ID": stack_id,
        "HEADRACE_HOME": str(settings.home),
        "HEADRACE_LINES_DIR": str(settings.lines_dir),
        "HEADRACE_FEATURE_REPO": str(settings.feature_repo),
        "HEADRACE_LINE_STORE": settings.line_store or "",
        "HEADRACE_MLFLOW_URI": settings.mlflow_uri or "",
        "HEADRACE_HOST": settings.host,
        "HEADRACE_SERVER_PORT": str(settings.server_port),
        "HEADRACE_GRPC_PORT": str(settings.grpc_port),
        "HEADRACE_COLLECTOR_PORT": str(settings.collector_port),
        "HEADRACE_AIRFLOW_PORT": str(settings.airflow_port),
        "HEADRACE_LEARNER_PORT": str(settings.learner_port),
        "HEADRACE_MIN_FREE_MB": str(settings.min_free_bytes // 2**20),
        "HEADRACE_KFP_ENDPOINT": settings.kfp_endpoint or "",
        "HEADRACE_KFP_TOKEN": settings.kfp_token or "",
        "HEADRACE_KFP_SECRET": str(settings.kfp_secret or ""),
        "HEADRACE_KFP_VOLUME": settings.kfp_volume or "",
        "HEADRACE_RUNNER": settings.runner,
        "HEADRACE_TRAINING_SLOTS": str(settings.training_slots),
        "HEADRACE_ONLINE_STORE": settings.online_store or "",
        "HEADRACE_PROFILE": settings.profile,
        "HEADRACE_EVENT_LOG": str(settings.event_log or ""),
        **_kafka(settings.kafka_security),
        "HEADRACE_REGISTRY": settings.registry or "",
        "HEADRACE_AIRFLOW_DATABASE": settings.airflow_database or "",
        "AIRFLOW_HOME": str(airflow_folder(settings)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": ",".join(direct),
        "no_proxy": ",".join(direct),
        # setproctitle (Airflow uses it) overwrites the environment that marks our processes
        "SPT_NOENV": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GX_ANALYTICS_ENABLED": "False",
        "FEAST_USAGE": "False",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "SCARF_ANALYTICS": "false",
    }


def _kafka(security: KafkaSecurity) -> dict[str, str]:
    return {
        "HEADRACE_KAFKA_SECURITY_PROTOCOL": security.protocol,
        "HEADRACE_KAFKA_SASL_MECHANISM": security.mechanism or "",
        "HEADRACE_KAFKA_SASL_USERNAME": security.username or "",
        "HEADRACE_KAFKA_SASL_PASSWORD": security.password or "",
        "HEADRACE_KAFKA_SSL_CA_LOCATION": str(security.ca or ""),
    }


def _answers(url: str) -> Ready:
    def ready(_since: datetime) -> bool:
        return _get(url) is not None

    return ready


def _passed(beat: Path, every_us: int | None = None) -> Ready:
    """Whether a process has ended a pass since its start, and lately, where it has a rhythm."""

    def ready(since: datetime) -> bool:
        if not beat.is_file():
            return False
        at = datetime.fromisoformat(json.loads(beat.read_text(encoding="utf-8"))["at"])
        late = every_us is not None and datetime.now(UTC) - at > LATE + 3 * timedelta(
            microseconds=every_us
        )
        return at >= since and not late

    return ready


def _beats(settings: Settings, part: str) -> Ready:
    """Airflow's own word on a part, whose last heartbeat must be newer than its start."""

    def ready(since: datetime) -> bool:
        answer = _get(f"{settings.airflow_url}/api/v2/monitor/health")
        state: dict[str, Any] = (answer.json() if answer is not None else {}).get(part) or {}
        beat = state.get(f"latest_{part}_heartbeat")
        fresh = beat is not None and datetime.fromisoformat(beat) >= since
        return fresh and state.get("status") == "healthy"

    return ready


def _get(url: str) -> httpx.Response | None:
    try:
        answer = httpx.get(url, timeout=5.0, trust_env=False)
    except httpx.TransportError:
        return None
    return answer if answer.is_success else None
