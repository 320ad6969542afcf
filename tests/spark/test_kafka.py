"""`headrace stream` from Kafka: a real broker, three partitions, the driver killed, each once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streaming

from headrace.errors import EnvironmentFault
from headrace.sample import ticks
from headrace.settings import load_settings
from headrace.stream.source import Kafka
from tests.spark import broker, secured

TOPIC = "events"
KILLS = 3
PARTITIONS = 3


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with broker.running(tmp_path_factory.mktemp("kafka")) as found:
        broker.topic(found, TOPIC, PARTITIONS)
        yield found


def counted(rows: list[dict[str, Any]]) -> Counter[tuple[str, str, str | None]]:
    return Counter((row["event"], row["impression_id"], row.get("user_id")) for row in rows)


@pytest.mark.spark
@pytest.mark.faults
def test_messages_reach_the_ticks_once_through_kills_and_restarts(
    tmp_path: Path, address: str
) -> None:
    sent = streaming.events(4_000, 3)
    messages: list[tuple[str, bytes | None]] = [
        (event["impression_id"], json.dumps(event).encode()) for event in sent
    ]
    bad = [("x", value) for value in (b'{"event": "buy"}', b"\xff\x00", None, b"[1, 2]")]
    home, half = tmp_path / "home", len(messages) // 2
    streaming.prepare(home, 4_000)
    source = f"kafka://{address}/{TOPIC}"
    broker.send(address, TOPIC, messages[:half] + bad)
    fell = streaming.run_with_kills(home, source, KILLS, 1.0, at_once=200)
    assert fell == KILLS
    assert counted(streaming.log_rows(home)) == counted(sent[:half])

    broker.send(address, TOPIC, messages[half:])
    assert streaming.end(streaming.start(home, source, at_once=10_000)) == 0
    line = home / "lines" / streaming.SPEC.line
    assert counted(streaming.log_rows(home)) == counted(sent)
    assert len((line / "malformed.jsonl").read_text().splitlines()) == len(bad)

    offsets = (line / "stream" / "checkpoint" / "offsets").glob("[0-9]*")
    newest = max(offsets, key=lambda path: int(path.name))
    read = json.loads(newest.read_text().splitlines()[-1])[TOPIC]
    assert len(read) == PARTITIONS
    assert sum(read.values()) == len(messages) + len(bad)
    manifests = ticks(line)
    assert manifests[-1].events[1] == len(sent)
    assert sum(manifest.counts["positives"] for manifest in manifests) > 200
    assert sum(manifest.counts.get("duplicate_impression", 0) for manifest in manifests) > 50


@pytest.mark.spark
def test_a_broker_that_asks_who_is_there_is_read_and_no_file_learns_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = streaming.events(200, 7)
    home, kafka = tmp_path / "home", tmp_path / "kafka"
    streaming.prepare(home, 200)
    kafka.mkdir()
    with secured.running(kafka) as found:
        broker.topic(found.open, TOPIC, PARTITIONS)
        broker.send(found.open, TOPIC, [(e["impression_id"], json.dumps(e).encode()) for e in sent])
        for name, value in {
            "SECURITY_PROTOCOL": "SASL_SSL",
            "SASL_MECHANISM": secured.SCRAM,
            "SASL_USERNAME": secured.USER,
            "SASL_PASSWORD": secured.PASSWORD,
            "SSL_CA_LOCATION": str(found.ca),
        }.items():
            monkeypatch.setenv(f"HEADRACE_KAFKA_{name}", value)
        driver = streaming.start(home, f"kafka://{found.sasl_ssl}/{TOPIC}", at_once=10_000)
        assert streaming.end(driver) == 0
    assert counted(streaming.log_rows(home)) == counted(sent)
    written = [path for path in home.rglob("*") if path.is_file()]
    assert any("checkpoint" in path.parts for path in written)
    secrets = (secured.PASSWORD.encode(), json.dumps(secured.PASSWORD).encode())
    for path in [*written, tmp_path / "home.err"]:
        assert not any(secret in path.read_bytes() for secret in secrets), path


def test_an_absent_broker_and_absent_jars_are_told_with_their_remedy(tmp_path: Path) -> None:
    (port,) = broker.free_ports(1)
    settings = load_settings({"HEADRACE_KAFKA_JARS": str(tmp_path)})
    with pytest.raises(EnvironmentFault, match="no broker answers"):
        Kafka(f"127.0.0.1:{port}", TOPIC).check(settings)
    with pytest.raises(EnvironmentFault, match=r"infra/setup/kafka\.sh"):
        Kafka("127.0.0.1:1", TOPIC).jars(settings)
