"""A log in a Kafka that asks who is there: the right word opens it, each wrong one is named."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from headrace.errors import EnvironmentFault
from headrace.events import event_schema
from headrace.log.kafka import KafkaLog
from headrace.log.stamp import event_writer
from headrace.settings import KafkaSecurity, Settings, find_line, load_settings
from headrace.stream.source import Kafka
from tests.spark import secured
from tests.spark.secured import PASSWORD, SCRAM, STRANGER, USER, Secured

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])
WAITS_S = 300.0  # longer than a test may take: who is refused is not asked for so long


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured.running(tmp_path_factory.mktemp("kafka")) as found:
        yield found


def security(kafka: Secured, name: str) -> tuple[str, KafkaSecurity]:
    """Address and settings that are right, by the protocol and, for SASL, the mechanism."""
    protocol, _, mechanism = name.partition(" ")
    ca = kafka.ca if protocol == "SASL_SSL" else None
    address = {"PLAINTEXT": kafka.open, "SASL_PLAINTEXT": kafka.sasl}.get(protocol, kafka.sasl_ssl)
    if not mechanism:
        return address, KafkaSecurity(protocol, ca=ca)
    return address, KafkaSecurity(protocol, mechanism, USER, PASSWORD, ca)


def settings_of(home: Path, address: str, topic: str, found: KafkaSecurity) -> Settings:
    given = {
        "HEADRACE_HOME": str(home),
        "HEADRACE_EVENT_LOG": f"kafka://{address}/{topic}",
        "HEADRACE_KAFKA_SECURITY_PROTOCOL": found.protocol,
        "HEADRACE_KAFKA_SASL_MECHANISM": found.mechanism or "",
        "HEADRACE_KAFKA_SASL_USERNAME": found.username or "",
        "HEADRACE_KAFKA_SASL_PASSWORD": found.password or "",
        "HEADRACE_KAFKA_SSL_CA_LOCATION": str(found.ca or ""),
    }
    return load_settings(given)


@pytest.mark.parametrize(
    "name",
    ["PLAINTEXT", "SASL_PLAINTEXT PLAIN", f"SASL_PLAINTEXT {SCRAM}", f"SASL_SSL {SCRAM}"],
)
def test_a_lines_events_are_stored_and_read_back_elsewhere(tmp_path, kafka, name):
    address, found = security(kafka, name)
    topic = uuid.uuid4().hex
    here = settings_of(tmp_path / "a", address, topic, found)
    spec = find_line(here, "coupons")
    row = dict.fromkeys(event_schema(spec).names)
    row |= {"event": "impression", "impression_id": "a", "event_at": 0, "arrival_at": 0, "value": 0}
    writer = event_writer(here, spec)
    writer.append(pa.Table.from_pylist([row] * 3, schema=event_schema(spec)))
    stored = writer.read(0, 9)
    assert writer.lag() <= 1
    writer.close()
    again = event_writer(settings_of(tmp_path / "b", address, topic, found), spec)
    assert again.head == 3
    assert again.read(0, 9).equals(stored)
    again.close()
    Kafka(address, topic).check(here)


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (f"SASL_PLAINTEXT {SCRAM}", {"password": "hunter2"}, "HEADRACE_KAFKA_SASL_PASSWORD"),
        ("SASL_PLAINTEXT PLAIN", {"password": "hunter2"}, "HEADRACE_KAFKA_SASL_PASSWORD"),
        (f"SASL_SSL {SCRAM}", {"username": "nobody"}, "refuses user 'nobody'"),
        (f"SASL_SSL {SCRAM}", {"mechanism": "SCRAM-SHA-512"}, "HEADRACE_KAFKA_SASL_MECHANISM"),
        (f"SASL_SSL {SCRAM}", {"ca": None}, "correct HEADRACE_KAFKA_SSL_CA_LOCATION"),
        (f"SASL_SSL {SCRAM}", {"ca": Path("/nowhere")}, "correct HEADRACE_KAFKA_SSL_CA_LOCATION"),
    ],
)
def test_what_is_refused_is_told_at_once_by_its_setting(
    tmp_path, kafka, caplog, capfd, right, wrong, told
):
    caplog.set_level(logging.DEBUG)
    address, found = security(kafka, right)
    found = KafkaSecurity(**vars(found) | wrong)
    with pytest.raises(EnvironmentFault, match=told) as refused:
        KafkaLog(tmp_path, SCHEMA, address, "t", writer=True, timeout_s=WAITS_S, security=found)
    with pytest.raises(EnvironmentFault, match=told):
        Kafka(address, "t").check(settings_of(tmp_path, address, "t", found))
    said = str(refused.value) + caplog.text + "".join(capfd.readouterr())
    assert f"kafka://{address}/t" in said
    assert found.password is not None
    assert found.password not in said


@pytest.mark.parametrize("name", ["PLAINTEXT", "SASL_SSL"])
def test_another_protocol_than_the_brokers_is_a_guess_after_a_while(tmp_path, kafka, name):
    _, found = security(kafka, f"SASL_SSL {SCRAM}" if name == "SASL_SSL" else name)
    with pytest.raises(EnvironmentFault, match="HEADRACE_KAFKA_SECURITY_PROTOCOL"):
        KafkaLog(tmp_path, SCHEMA, kafka.sasl, "t", writer=True, timeout_s=1, security=found)


def test_a_user_without_rights_is_told_what_to_ask_for(tmp_path, kafka):
    address, ours = security(kafka, f"SASL_PLAINTEXT {SCRAM}")
    theirs = KafkaSecurity(**vars(ours) | {"username": STRANGER})
    topic = uuid.uuid4().hex
    with pytest.raises(EnvironmentFault, match=r"'stranger' may not .* docs/security\.md"):
        KafkaLog(tmp_path / "a", SCHEMA, address, topic, writer=True, security=theirs)
    KafkaLog(tmp_path / "b", SCHEMA, address, topic, writer=True, security=ours).close()
    with pytest.raises(EnvironmentFault, match="no such topic"):  # Kafka shows none of it
        KafkaLog(tmp_path / "c", SCHEMA, address, topic, writer=False, security=theirs)
    grant(kafka, name := uuid.uuid4().hex)
    log = KafkaLog(
        tmp_path / "d", SCHEMA, address, f"{name}.x.events", writer=True, security=theirs
    )
    assert log.append(pa.table([[1, 2]], schema=SCHEMA)) == 0
    log.close()


def grant(kafka: Secured, name: str) -> None:
    """What docs/security.md lists, and nothing else."""
    listed = {
        (ResourceType.TOPIC, f"{name}."): ("CREATE", "DESCRIBE", "READ", "WRITE"),
        (ResourceType.TRANSACTIONAL_ID, f"{name}."): ("DESCRIBE", "WRITE"),
        (ResourceType.GROUP, "headrace"): ("READ",),
    }
    grants = [
        AclBinding(
            kind,
            prefix,
            ResourcePatternType.PREFIXED,
            f"User:{STRANGER}",
            "*",
            AclOperation[operation],
            AclPermissionType.ALLOW,
        )
        for (kind, prefix), operations in listed.items()
        for operation in operations
    ]
    client = AdminClient({"bootstrap.servers": kafka.open})
    for done in client.create_acls(grants).values():
        done.result(30)
    every = AclBindingFilter(
        ResourceType.ANY,
        None,
        ResourcePatternType.ANY,
        f"User:{STRANGER}",
        None,
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    while len(client.describe_acls(every).result(30)) < len(grants):  # the broker hears of it
        time.sleep(0.1)
