"""Where things are and on which ports, as frozen values."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

TRAINING_POOL: Final = "headrace_training"
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
class KafkaSecurity:
    """How Kafka's clients connect: encrypted or not, and as whom.

    `protocol` is Kafka's `security.protocol`; with SASL it brings `mechanism`, `username` and
    `password`; with TLS the brokers' certificates must come from `ca`, a PEM file (None: from
    those that the system trusts), and name the host that was asked.
    """

    protocol: str = "PLAINTEXT"
    mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None


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
    s3a_jars: Path
    online_store: str | None = field(default=None, repr=False)  # a Redis URL; None is SQLite
    offline_store: str = "duckdb"
    alarm_command: str | None = None  # gets each alarm as JSON on its standard input
    learner_port: int = 8503
    cluster: Cluster | None = None
    score_token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    collect_token: str | None = field(default=None, repr=False)
    profile: str = "local"
    event_log: KafkaLog | None = None  # None: files in the line's home alone
    kafka_security: KafkaSecurity = KafkaSecurity()  # of every Kafka client
    registry: str | None = field(
        default=None, repr=False
    )  # Feast's: PostgreSQL or S3; None: a file
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
        return _without_user(self.online_store)

    @property
    def registry_name(self) -> str:
        """Feast's registry as it may be shown: without user and password."""
        if self.registry is None:
            return str(self.home / "feast" / "registry.db")
        return _without_user(self.registry)

    @property
    def on_loopback(self) -> bool:
        """Whether services listen where this machine alone reaches them."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def server_url(self) -> str:
        return f"http://{self.host}:{self.server_port}"

    @property
    def score_headers(self) -> dict[str, str]:
        """What a scoring request must carry: the token where there is one."""
        return _bearer(self.score_token)

    @property
    def collect_headers(self) -> dict[str, str]:
        """What a request with events must carry: the token where there is one."""
        return _bearer(self.collect_token)

    @property
    def collector_url(self) -> str:
        return f"http://{self.host}:{self.collector_port}"

    @property
    def learner_url(self) -> str:
        return f"http://{self.host}:{self.learner_port}"

    @property
    def airflow_url(self) -> str:
        return f"http://{self.host}:{self.airflow_port}"


def _bearer(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
