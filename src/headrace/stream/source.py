"""Where a stream comes from: files (`headrace.stream.files`) or a Kafka topic, by its address."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.settings import KafkaSecurity, Settings
from headrace.stream.files import Files, Objects

if TYPE_CHECKING:
    from headrace.spark import DataFrame, SparkSession

_KAFKA: Final = re.compile(r"^kafka://(?P<brokers>[^/]+:\d+)/(?P<topic>[A-Za-z0-9._-]+)$")
_S3: Final = re.compile(
    r"^files:s3a?://(?P<bucket>[a-z0-9][a-z0-9.-]+[a-z0-9])(?P<prefix>(/(?!\.{1,2}(/|$))[\w.=+~-]+)*)/?$",
    re.ASCII,
)
_SHAPES: Final = "give files:DIR, files:s3://BUCKET/PREFIX or kafka://HOST:PORT/TOPIC"
_CHECK_S: Final = 10.0
_LOGINS: Final = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
MESSAGES_AT_ONCE: Final = 100_000


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


def parse(text: str) -> Files | Objects | Kafka:
    """`files:DIR`, `files:s3://BUCKET/PREFIX` (or `s3a:`) or `kafka://HOST:PORT[,…]/TOPIC`.

    Raises `InputError` for others.
    """
    if match := _S3.match(text):
        return Objects(match["bucket"], match["prefix"].strip("/"))
    if re.match("(files:)?s3a?:/", text):
        if "@" in text:
            raise InputError(
                "--from holds credentials; give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    elif text.startswith("files:") and len(text) > len("files:"):
        return Files(Path(text.removeprefix("files:")).resolve())
    elif match := _KAFKA.match(text):
        return Kafka(match["brokers"], match["topic"])
    raise InputError(f"--from {text!r}: {_SHAPES}")


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
