"""A log in Kafka: its copies, its one writer, and what a kill between the two leaves behind."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import event_schema
from headrace.log.files import FileLog
from headrace.log.kafka import CHUNK_BYTES, KafkaLog
from headrace.log.stamp import event_writer
from headrace.settings import find_line, load_settings
from tests.spark import broker

pytestmark = pytest.mark.e2e

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("text", pa.string())])


def rows(*numbers: int, text: str = "") -> pa.Table:
    return pa.table([list(numbers), [f"{n}{text}" for n in numbers]], schema=SCHEMA)


@pytest.fixture
def topic() -> str:
    return uuid.uuid4().hex


def opened(folder: Path, kafka: str, topic: str, *, writer: bool = True) -> KafkaLog:
    return KafkaLog(folder, SCHEMA, kafka, topic, writer=writer)


def test_a_lost_copy_and_one_that_lacks_the_newest_append_are_made_whole(tmp_path, kafka, topic):
    first = opened(tmp_path / "a", kafka, topic)
    assert [first.append(rows(0, 1, 2)), first.append(rows(3))] == [0, 3]
    shutil.copytree(tmp_path / "a", tmp_path / "behind")
    first.append(rows(4, 5))
    whole = first.read(0, 6)
    first.close()
    for place in ("behind", "lost"):
        again = opened(tmp_path / place, kafka, topic)
        assert again.head == 6
        assert again.read(0, 6).equals(whole)
        assert again.append(SCHEMA.empty_table()) == 6
        assert again.lag() <= 1  # the mark of the last commit
        again.close()


def test_an_append_of_many_messages_appears_whole(tmp_path, kafka, topic):
    log, reader = opened(tmp_path / "a", kafka, topic), None
    big = rows(*range(3000), text="x" * 1000)
    assert big.nbytes > 4 * CHUNK_BYTES
    log.append(rows(-1))
    reader = opened(tmp_path / "b", kafka, topic, writer=False)
    assert reader.head == 1
    log.append(big)
    assert reader.lag() > 4
    assert reader.head == 3001
    assert reader.segments == 2  # an append is a segment, however many messages it came in
    assert reader.lag() <= 1
    assert reader.read(0, 3001).equals(log.read(0, 3001))
    with pytest.raises(EnvironmentFault, match="writer=True"):
        reader.append(rows(1))
    reader.close()
    log.close()


def test_a_writer_elsewhere_fences_the_first_off_for_good(tmp_path, kafka, topic):
    first = opened(tmp_path / "a", kafka, topic)
    first.append(rows(0))
    second = opened(tmp_path / "b", kafka, topic)
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match="another process writes this log since"):
            first.append(rows(1))
    assert second.append(rows(2)) == 1
    assert second.read(0, 9)["n"].to_pylist() == [0, 2]
    first.close()
    second.close()


def test_topics_that_are_no_log_of_this_home_are_refused(tmp_path, kafka, topic):
    broker.topic(kafka, topic, 3)
    with pytest.raises(EnvironmentFault, match="has 3 partitions"):
        opened(tmp_path / "a", kafka, topic)
    with pytest.raises(EnvironmentFault, match="no such topic"):
        opened(tmp_path / "a", kafka, f"{topic}2", writer=False)
    filled = FileLog(tmp_path / "b", SCHEMA, writer=True)
    filled.append(rows(0, 1))
    filled.close()
    with pytest.raises(IntegrityError, match=r"is empty, but .* holds 2 records"):
        opened(tmp_path / "b", kafka, f"{topic}3")
    with pytest.raises(EnvironmentFault, match="start Kafka there"):
        KafkaLog(tmp_path / "c", SCHEMA, "127.0.0.1:1", topic, writer=True, timeout_s=1)


def test_the_settings_put_a_lines_events_there_with_their_stamps(tmp_path, kafka, topic):
    environ = {"HEADRACE_EVENT_LOG": f"kafka://{kafka}/{topic}"}
    settings = load_settings(environ | {"HEADRACE_HOME": str(tmp_path / "a")})
    spec = find_line(settings, "coupons")
    clock = iter([100, 50, 40])
    writer = event_writer(settings, spec, lambda: next(clock))
    row = dict.fromkeys(event_schema(spec).names)
    row |= {"event": "impression", "impression_id": "a", "event_at": 0, "arrival_at": 0, "value": 0}
    one = pa.Table.from_pylist([row], schema=event_schema(spec))
    writer.append(one)
    writer.append(one)
    writer.close()
    elsewhere = load_settings(environ | {"HEADRACE_HOME": str(tmp_path / "b")})
    again = event_writer(elsewhere, spec, lambda: next(clock))
    again.append(one)
    assert again.read(0, 9)["arrival_at"].cast("int64").to_pylist() == [100, 101, 102]
    again.close()
