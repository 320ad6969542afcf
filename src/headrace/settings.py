"""The only reader of the environment, and the parser of lines.

Settings are read once into a frozen value; a line's YAML becomes a `LineSpec` or a
`DeclarationError` that names the key, the value and the remedy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError
from headrace.profile import with_profile

PROJECT = Path(__file__).resolve().parents[2]
_REDIS_DATABASE = re.compile(r"(/\d*)?")
_NOT_IN_A_URL = re.compile(r"[\s'\"$\\]")
_TOKEN = re.compile(r"[!-~]{16,512}")
_POD_SECRET = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)/(?P<keys>[A-Z][A-Z0-9_]*(,[A-Z][A-Z0-9_]*)*)"
)
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_KAFKA = re.compile(r"kafka://(?P<brokers>[^/\s,]+:\d+(,[^/\s,]+:\d+)*)/(?P<name>[A-Za-z0-9._-]+)")
OFFLINE_STORES = ("duckdb", "spark")
RUNNERS = ("subprocess", "docker")
PROFILES = PROJECT / "profiles"
TRAINING_POOL = "headrace_training"
"""Airflow's pool for the trainings from scratch that run on its own machine."""


@dataclass(frozen=True)
class KafkaLog:
    """Where lines' event logs lie: brokers, and what the topics' names begin with."""

    brokers: str  # host:port, comma separated
    name: str

    def topic(self, line: str) -> str:
        """The topic of a line's event log."""
        return f"{self.name}.{line}.events"

    def __str__(self) -> str:
        return f"kafka://{self.brokers}/{self.name}"


@dataclass(frozen=True)
class PodSecret:
    """A Secret of a cluster by name, and those of its keys that a pod gets as variables."""

    name: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}/{','.join(self.keys)}"


@dataclass(frozen=True)
class Cluster:
    """This process among those that train together: `host:port` of each, and its own place."""

    addresses: tuple[str, ...]
    index: int


@dataclass(frozen=True)
class Settings:
    """Where things are and on which ports. Every service binds to `host`.

    With less than `min_free_bytes` free on the home's disk the collector takes no more events.
    The scoring server asks for the tokens that are set (docs/adr/0035).
    """

    home: Path
    lines_dir: Path
    feature_repo: Path
    host: str
    server_port: int
    grpc_port: int
    collector_port: int
    airflow_port: int
    min_free_bytes: int
    line_store: str | None
    mlflow_uri: str | None = field(repr=False)  # may hold a password
    kfp_endpoint: str | None
    kfp_token: str | None = field(repr=False)
    kafka_jars: Path
    online_store: str | None = field(default=None, repr=False)  # a Redis URL; None is SQLite
    offline_store: str = "duckdb"
    alarm_command: str | None = None  # gets each alarm as JSON on its standard input
    learner_port: int = 8503
    cluster: Cluster | None = None
    score_token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    profile: str = "local"
    event_log: KafkaLog | None = None  # None: files in the line's home alone
    registry: str | None = field(default=None, repr=False)  # Feast's, a PostgreSQL; None is a file
    airflow_database: str | None = field(default=None, repr=False)  # None is SQLite
    kfp_secret: PodSecret | None = None  # for the containers of a pipeline on a cluster
    kfp_volume: str | None = None  # a claim there, mounted as their home
    training_slots: int = 1  # of `TRAINING_POOL`
    runner: str = "subprocess"  # of pipelines on this machine; `docker`: in containers

    def line_home(self, line: str) -> Path:
        """Folder of what belongs to one line on this machine: logs, ticks, samples, records."""
        return self.home / "lines" / line

    def line_store_url(self, line: str) -> str:
        """Where the line's versions and champion are: below `line_store`, or in its home."""
        if self.line_store is None:
            return str(self.line_home(line))
        return f"{self.line_store}/{line}"

    @property
    def online_store_name(self) -> str:
        """The online store as it may be shown: without user and password."""
        if self.online_store is None:
            return f"sqlite:///{self.home / 'feast' / 'online.db'}"
        parts = urlsplit(self.online_store)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def server_url(self) -> str:
        return f"http://{self.host}:{self.server_port}"

    @property
    def score_headers(self) -> dict[str, str]:
        """What a scoring request must carry: the token where there is one."""
        return {"authorization": f"Bearer {self.score_token}"} if self.score_token else {}

    @property
    def collector_url(self) -> str:
        return f"http://{self.host}:{self.collector_port}"

    @property
    def learner_url(self) -> str:
        return f"http://{self.host}:{self.learner_port}"

    @property
    def airflow_url(self) -> str:
        return f"http://{self.host}:{self.airflow_port}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `HEADRACE_*` from the environment (or the given mapping), over its profile."""
    env = with_profile(os.environ if environ is None else environ, PROFILES)

    def path(name: str, default: Path) -> Path:
        return Path(env.get(name) or default).resolve()

    def port(name: str, default: int) -> int:
        text = env.get(name, str(default))
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise DeclarationError(f"{name}={text!r} is not a port; give a number from 1 to 65535")
        return int(text)

    def megabytes(name: str, default: int) -> int:
        text = env.get(name, str(default))
        if not text.isdecimal():
            raise DeclarationError(f"{name}={text!r} is not a size; give whole MiB, 0 for none")
        return int(text) * 2**20

    def slots(name: str, default: int) -> int:
        text = env.get(name) or str(default)
        if not text.isdecimal() or not 0 < int(text) <= 64:
            raise DeclarationError(
                f"{name}={text!r} is no number of trainings at once; give 1 to 64"
            )
        return int(text)

    return Settings(
        home=path("HEADRACE_HOME", PROJECT / "out" / "stack"),
        lines_dir=path("HEADRACE_LINES_DIR", PROJECT / "lines"),
        feature_repo=Path(
            env.get("HEADRACE_FEATURE_REPO", str(PROJECT / "feature_repo"))
        ).resolve(),
        host=env.get("HEADRACE_HOST", "127.0.0.1"),
        server_port=port("HEADRACE_SERVER_PORT", 8500),
        grpc_port=port("HEADRACE_GRPC_PORT", 8502),
        collector_port=port("HEADRACE_COLLECTOR_PORT", 8501),
        airflow_port=port("HEADRACE_AIRFLOW_PORT", 8080),
        min_free_bytes=megabytes("HEADRACE_MIN_FREE_MB", 256),
        line_store=_store_url(env.get("HEADRACE_LINE_STORE")),
        mlflow_uri=_tracking_uri(env.get("HEADRACE_MLFLOW_URI")),
        kfp_endpoint=env.get("HEADRACE_KFP_ENDPOINT") or None,
        kfp_token=env.get("HEADRACE_KFP_TOKEN") or None,
        kafka_jars=path("HEADRACE_KAFKA_JARS", PROJECT / "out" / "kafka" / "spark"),
        online_store=_redis_url(env.get("HEADRACE_ONLINE_STORE") or None),
        learner_port=port("HEADRACE_LEARNER_PORT", 8503),
        offline_store=_offline_store(env.get("HEADRACE_OFFLINE_STORE") or "duckdb"),
        alarm_command=env.get("HEADRACE_ALARM_COMMAND") or None,
        cluster=_cluster(env.get("TF_CONFIG") or None),
        score_token=_token(env, "HEADRACE_SCORE_TOKEN"),
        admin_token=_token(env, "HEADRACE_ADMIN_TOKEN"),
        profile=env.get("HEADRACE_PROFILE") or "local",
        event_log=_kafka_log(env.get("HEADRACE_EVENT_LOG") or None),
        registry=_database(env, "HEADRACE_REGISTRY", "a file below HEADRACE_HOME"),
        airflow_database=_database(env, "HEADRACE_AIRFLOW_DATABASE", "SQLite"),
        kfp_secret=_pod_secret(env.get("HEADRACE_KFP_SECRET") or None),
        kfp_volume=_claim(env.get("HEADRACE_KFP_VOLUME") or None),
        training_slots=slots("HEADRACE_TRAINING_SLOTS", 1),
        runner=_runner(env.get("HEADRACE_RUNNER") or "subprocess"),
    )


def _kafka_log(url: str | None) -> KafkaLog | None:
    if url is None:
        return None
    found = _KAFKA.fullmatch(url)
    if found is None:
        raise DeclarationError(
            f"HEADRACE_EVENT_LOG={url.rpartition('@')[2]!r} names no Kafka; write "
            "kafka://HOST:PORT[,HOST:PORT]/NAME, where the topics' names begin with NAME, or leave "
            "the variable out for files"
        )
    return KafkaLog(found["brokers"], found["name"])


def _pod_secret(text: str | None) -> PodSecret | None:
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


def _claim(name: str | None) -> str | None:
    if name is not None and not _CLAIM.fullmatch(name):
        raise DeclarationError(
            f"HEADRACE_KFP_VOLUME={name!r} is no name of a volume claim; write one that "
            "`kubectl get pvc` prints, or leave the variable out for none"
        )
    return name


def _database(env: Mapping[str, str], name: str, otherwise: str) -> str | None:
    """A PostgreSQL's URL; an error never shows it, as it may hold a password."""
    url = env.get(name) or None
    if url is not None and not re.fullmatch(r"postgresql\+psycopg://[^\s'\"$\\]+/\w+", url):
        raise DeclarationError(
            f"{name} names no PostgreSQL; write postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME, "
            f"the password percent-encoded, or leave the variable out for {otherwise}"
        )
    return url


def _token(env: Mapping[str, str], name: str) -> str | None:
    """A secret that can stand in a header; an error never shows it."""
    text = env.get(name) or None
    if text is not None and not _TOKEN.fullmatch(text):
        raise DeclarationError(
            f"{name} ({len(text)} characters) is no token; give 16 to 512 printable ASCII "
            "characters without spaces, such as `openssl rand -hex 32` prints"
        )
    return text


def _cluster(text: str | None) -> Cluster | None:
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


def _redis_url(url: str | None) -> str | None:
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


def _offline_store(name: str) -> str:
    if name not in OFFLINE_STORES:
        raise DeclarationError(
            f"HEADRACE_OFFLINE_STORE={name!r} is not an offline store; set one of "
            f"{', '.join(OFFLINE_STORES)}, or leave the variable out for duckdb"
        )
    return name


def _runner(name: str) -> str:
    if name not in RUNNERS:
        raise DeclarationError(
            f"HEADRACE_RUNNER={name!r} runs no pipeline; set one of {', '.join(RUNNERS)}, or "
            "HEADRACE_KFP_ENDPOINT for a cluster"
        )
    return name


def _store_url(text: str | None) -> str | None:
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


def _tracking_uri(text: str | None) -> str | None:
    if not text:
        return None
    if urlsplit(text).scheme.split("+")[0] not in (
        "sqlite",
        "postgresql",
        "mysql",
        "http",
        "https",
    ):
        raise DeclarationError(
            "HEADRACE_MLFLOW_URI names no server and no database; give http://host:port, "
            "sqlite:////folder/mlflow.db or postgresql://…, or leave it empty for no MLflow"
        )
    return text


def java_command(environ: Mapping[str, str] | None = None) -> str:
    """The Java that Spark would start: the one in `JAVA_HOME`, otherwise the one on PATH."""
    home = (os.environ if environ is None else environ).get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else "java"


def load_line(path: Path) -> LineSpec:
    """Parse one line's YAML. Raises `DeclarationError` listing every wrong key.

    The lists in `<name>/expectations/*.yaml` beside it join `gates.data.expectations`.
    """
    raw = _mapping(path)
    for file in sorted((path.with_suffix("") / "expectations").glob("*.yaml")):
        own = _parsed(file)
        if not isinstance(own, list):
            raise DeclarationError(f"{file}: not a list of expectations; start each with `- `")
        gates = raw.setdefault("gates", {})
        data = gates.setdefault("data", {}) if isinstance(gates, dict) else None
        if not isinstance(data, dict):
            raise DeclarationError(f"{path}: gates.data: not a mapping; correct it")
        data["expectations"] = [*data.get("expectations", []), *own]
    try:
        return LineSpec.model_validate(raw)
    except ValidationError as problem:
        raise DeclarationError(_explain(path, problem)) from None


def _mapping(path: Path) -> dict[str, object]:
    raw = _parsed(path)
    if not isinstance(raw, dict):
        raise DeclarationError(f"{path}: a line is a mapping of keys; start with `line: <name>`")
    return raw


def _parsed(path: Path) -> object:
    """What a YAML file holds."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeclarationError(f"{path}: no such line file; {_known(path.parent)}") from None
    except IsADirectoryError:
        raise DeclarationError(
            f"{path} is a folder; give the YAML file of a line; {_known(path)}"
        ) from None
    except UnicodeDecodeError as problem:
        raise DeclarationError(
            f"{path}: not text in UTF-8 (byte {problem.start} is {problem.object[problem.start]:#x}"
            "); save it as UTF-8"
        ) from None
    except yaml.YAMLError as problem:
        raise DeclarationError(f"{path}: {_where(problem)}; correct it") from None
    except OSError as problem:
        raise DeclarationError(
            f"{path}: not readable: {problem.strerror}; give the YAML file of a line"
        ) from None


def load_lines(folder: Path) -> dict[str, LineSpec]:
    """All lines of a folder by name. Raises `DeclarationError` for a name used twice."""
    lines: dict[str, LineSpec] = {}
    for path in sorted(folder.glob("*.yaml")):
        spec = load_line(path)
        if spec.line in lines:
            raise DeclarationError(f"{path}: line {spec.line!r} is declared twice; rename one")
        lines[spec.line] = spec
    return lines


def find_line(settings: Settings, line: str) -> LineSpec:
    """The declared line of that name. Raises `DeclarationError` naming the known ones."""
    lines = load_lines(settings.lines_dir)
    if line not in lines:
        known = ", ".join(lines) or "none"
        raise DeclarationError(
            f"line {line!r} is not declared in {settings.lines_dir}; known: {known}"
        )
    return lines[line]


def _known(folder: Path) -> str:
    return f"there are: {', '.join(sorted(p.name for p in folder.glob('*.yaml'))) or 'none'}"


def _where(problem: yaml.YAMLError) -> str:
    if not isinstance(problem, yaml.MarkedYAMLError) or problem.problem_mark is None:
        return f"not readable as YAML: {' '.join(str(problem).split())}"
    mark = problem.problem_mark
    what = problem.problem or problem.context
    return f"line {mark.line + 1}, column {mark.column + 1} is not readable as YAML: {what}"


def _explain(path: Path, problem: ValidationError) -> str:
    parts = []
    for error in problem.errors():
        where = ".".join(str(part) for part in error["loc"]) or "line"
        if error["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown key; remove it or correct its spelling")
        else:
            value = error.get("input")
            shown = "" if isinstance(value, dict) else f" (got {value!r})"
            parts.append(f"{where}: {error['msg'].removeprefix('Value error, ')}{shown}")
    return f"{path}: " + "; ".join(parts)
