"""Where a stream comes from: a folder of files or a Kafka topic, as a frame with one JSON column.

Every row is one event as the collector takes it. A file must appear whole: write it under a name
that begins with a dot, or outside of the folder, then rename it.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.settings import KafkaSecurity, Settings

if TYPE_CHECKING:
    from headrace.spark import DataFrame, SparkSession

_KAFKA: Final = re.compile(r"^kafka://(?P<brokers>[^/]+:\d+)/(?P<topic>[A-Za-z0-9._-]+)$")
_PLACE: Final = ("file_modification_time", "file_path", "file_block_start")
_TYPES: Final = {"string": "STRING", "int": "BIGINT", "float": "DOUBLE"}
_CHECK_S: Final = 10.0
_LOGINS: Final = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
FILES_AT_ONCE: Final = 100
MESSAGES_AT_ONCE: Final = 100_000


@dataclass(frozen=True)
class Files:
    """A folder in which `*.jsonl` and `*.parquet` files arrive.

    A line of a `.jsonl` file is an event. A Parquet file has columns of the event log without
    stamp (`event_at` a timestamp); those that it lacks are null. A batch has up to `at_once`
    files of each kind; its events come by time, then path of their files, each file in its order.
    """

    folder: Path
    at_once: int = FILES_AT_ONCE

    def __str__(self) -> str:
        return f"files:{self.folder}"

    def jars(self, _settings: Settings) -> list[Path]:
        """Jars that Spark needs for it: none."""
        return []

    def check(self, _settings: Settings) -> None:
        """Raise `InputError` when there is no such folder."""
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder; make it, then move event files in")

    def frame(self, spark: SparkSession, spec: LineSpec, _settings: Settings) -> DataFrame:
        """The streaming frame: `value`, text, and where it stood, for `values`."""
        lines = self._reader(spark, "*.jsonl").text(str(self.folder)).where("trim(value) != ''")
        rows = self._reader(spark, "*.parquet").schema(_columns(spec)).parquet(str(self.folder))
        others = ("event", "impression_id", "request_id", "value", *spec.columns)
        names = ", ".join(f"`{name}`" for name in others)
        event = f"to_json(struct(unix_micros(event_at) AS event_at, {names})) AS value"
        place = [f"_metadata.{name} AS {name}" for name in _PLACE]
        return lines.selectExpr("value", *place).union(rows.selectExpr(event, *place))

    @staticmethod
    def values(rows: pa.Table) -> list[str]:
        """The events of a batch in order: Spark reads the largest of its files first."""
        by_place = pc.sort_indices(rows, [(name, "ascending") for name in _PLACE])  # stable
        values: list[str] = rows["value"].take(by_place).to_pylist()
        return values

    def _reader(self, spark: SparkSession, names: str) -> DataFrame:
        options = {"pathGlobFilter": names, "maxFilesPerTrigger": str(self.at_once)}
        return spark.readStream.options(**options)


@dataclass(frozen=True)
class Kafka:
    """A topic whose messages' values are events; a batch has up to `at_once` messages.

    A first start reads from the earliest message; from then on Spark's checkpoint knows the
    offsets of each partition. Messages that retention removed unread are an error.
    """

    brokers: str  # host:port, comma separated
    topic: str
    at_once: int = MESSAGES_AT_ONCE

    def __str__(self) -> str:
        return f"kafka://{self.brokers}/{self.topic}"

    def jars(self, settings: Settings) -> list[Path]:
        """Spark's Kafka source. Raises `EnvironmentFault` when it is not installed."""
        found = sorted(settings.kafka_jars.glob("*.jar"))
        if not found:
            raise EnvironmentFault(
                f"no jars of Spark's Kafka source in {settings.kafka_jars}; run "
                "infra/setup/kafka.sh, or set HEADRACE_KAFKA_JARS to their folder"
            )
        return found

    def check(self, settings: Settings) -> None:
        """Raise `EnvironmentFault` when no broker answers, or none as the settings ask."""
        from headrace.log.brokers import Brokers

        self._reach()
        Brokers(self.brokers, settings.kafka_security, str(self), "--from").admin(_CHECK_S)

    def frame(self, spark: SparkSession, _spec: LineSpec, settings: Settings) -> DataFrame:
        """The streaming frame: `value`, bytes."""
        options = {
            "kafka.bootstrap.servers": self.brokers,
            "subscribe": self.topic,
            "startingOffsets": "earliest",
            "maxOffsetsPerTrigger": str(self.at_once),
        } | java_options(settings.kafka_security)
        return spark.readStream.format("kafka").options(**options).load().select("value")

    def _reach(self) -> None:
        """Raise `EnvironmentFault` at once where nobody listens: a client would go on trying."""
        problem: OSError | None = None
        for broker in self.brokers.split(","):
            host, _, port = broker.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            except OSError as refused:
                problem = refused
            else:
                return
        raise EnvironmentFault(
            f"{self}: no broker answers ({problem}); start Kafka or correct the address"
        )

    @staticmethod
    def values(rows: pa.Table) -> list[bytes | None]:
        """The events of a batch, those of each partition in the order of their offsets."""
        values: list[bytes | None] = rows["value"].to_pylist()
        return values


def parse(text: str) -> Files | Kafka:
    """`files:DIR` or `kafka://HOST:PORT[,HOST:PORT]/TOPIC`. Raises `InputError` for others."""
    if text.startswith("files:") and len(text) > len("files:"):
        return Files(Path(text.removeprefix("files:")).resolve())
    if match := _KAFKA.match(text):
        return Kafka(match["brokers"], match["topic"])
    raise InputError(f"--from {text!r}: give files:DIR or kafka://HOST:PORT/TOPIC")


def java_options(security: KafkaSecurity) -> dict[str, str]:
    """What Kafka's Java client, which Spark uses, is told to connect.

    The CA goes along as text, so that executors elsewhere need no file.
    """
    options = {"kafka.security.protocol": security.protocol}
    if security.mechanism is not None:
        username, password = (
            _quoted(text or "") for text in (security.username, security.password)
        )
        options["kafka.sasl.mechanism"] = security.mechanism
        options["kafka.sasl.jaas.config"] = (
            f"{_LOGINS[security.mechanism[:5]]} required username={username} password={password};"
        )
    if security.ca is not None:
        options["kafka.ssl.truststore.type"] = "PEM"
        options["kafka.ssl.truststore.certificates"] = security.ca.read_text(encoding="ascii")
    return options


def _quoted(text: str) -> str:
    """A word of a JAAS configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _columns(spec: LineSpec) -> str:
    own = {"event": "STRING", "impression_id": "STRING", "request_id": "STRING"}
    own |= {"event_at": "TIMESTAMP", "value": "BIGINT"}
    declared = {name: _TYPES[kind] for name, kind in spec.columns.items()}
    return ", ".join(f"`{name}` {kind}" for name, kind in (own | declared).items())
