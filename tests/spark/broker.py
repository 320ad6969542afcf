"""A real Kafka broker (KRaft, one node) on loopback, from the jars of infra/setup/kafka.sh."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.settings import PROJECT

JARS = PROJECT / "out" / "kafka" / "broker"
CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
JAVA = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*"]
PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{others}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{others}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
log.dirs={folder}/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""


class Broker:
    """A broker in a folder of its own; what it stored outlives `kill`, and `start` goes on.

    `others`: protocols that it speaks too, each on its port; `more`: properties for them;
    `users`: arguments of `format`.
    """

    def __init__(
        self,
        folder: Path,
        others: Mapping[str, int] | None = None,
        more: str = "",
        users: Sequence[str] = (),
    ) -> None:
        self._log = folder / "broker.log"
        self._settings = folder / "server.properties"
        self.port, controller = free_ports(2)
        others = others or {}
        text = PROPERTIES.format(
            port=self.port,
            controller=controller,
            folder=folder,
            others="".join(f",{name}://127.0.0.1:{port}" for name, port in others.items()),
            protocols="".join(f",{name}:{name}" for name in others),
        )
        self._settings.write_text(text + more)
        storage = ["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self._settings)]
        subprocess.run([*JAVA, *storage, *users], check=True, capture_output=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def advertise(self, port: int) -> None:
        """Tell clients to connect to this port, a proxy's; before `start`."""
        text = self._settings.read_text()
        ours = f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}"
        self._settings.write_text(
            text.replace(ours, f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}")
        )

    def start(self) -> None:
        """Start it and return when it answers."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*JAVA, "kafka.Kafka", str(self._settings)], stdout=log, stderr=subprocess.STDOUT
            )
        wait_for(self.port, self._process, self._log)

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def installed() -> None:
    """Skip without Maven; fail without the jars."""
    if not JARS.is_dir():
        if shutil.which("mvn") is None:
            pytest.skip("no Kafka: needs Maven (apt-get install maven), then infra/setup/kafka.sh")
        pytest.fail(f"{JARS} is missing: run infra/setup/kafka.sh")


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a broker and give its address. Skips without Maven; fails without the jars."""
    installed()
    broker = Broker(folder)
    try:
        broker.start()
        yield broker.address
    finally:
        broker.kill()


def topic(address: str, name: str, partitions: int) -> None:
    """Create a topic."""
    client = AdminClient({"bootstrap.servers": address})
    for done in client.create_topics([NewTopic(name, partitions, 1)]).values():
        done.result(30)


def send(address: str, name: str, messages: list[tuple[str, bytes | None]]) -> None:
    """Produce (key, value) messages, all acknowledged on return."""
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True})
    for key, value in messages:
        producer.produce(
            name, value, key, on_delivery=lambda problem, _: problem and refused.append(problem)
        )
    assert producer.flush(60) == 0
    assert refused == []


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the broker answers."""
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the broker does not answer: {log.read_text()}")
