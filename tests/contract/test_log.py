"""What every reader and the single writer of a log may rely on, in files and in Kafka.

A log in Kafka is read from its copy, which is a file log.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.errors import EnvironmentFault, InputError, IntegrityError
from headrace.events import LATER
from headrace.log.files import FileLog
from headrace.log.kafka import KafkaLog
from headrace.log.stamp import EventWriter
from headrace.settings import load_line

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("text", pa.string())])


def rows(*numbers: int) -> pa.Table:
    return pa.table([list(numbers), [str(n) for n in numbers]], schema=SCHEMA)


@pytest.fixture(params=["files", pytest.param("kafka", marks=pytest.mark.e2e)])
def log(request, tmp_path: Path):
    if request.param == "files":
        writer = FileLog(tmp_path / "log", SCHEMA, writer=True)
    else:
        address, topic = request.getfixturevalue("kafka"), uuid.uuid4().hex
        writer = KafkaLog(tmp_path / "log", SCHEMA, address, topic, writer=True)
    yield writer
    writer.close()


def test_offsets_count_records_and_reads_cut_at_any_of_them(log, tmp_path):
    assert (log.head, log.last()) == (0, None)
    assert [log.append(rows(0, 1, 2)), log.append(rows(3)), log.append(rows(4, 5))] == [0, 3, 4]
    reader = FileLog(tmp_path / "log", SCHEMA)
    for start in range(7):
        for stop in range(start, 8):
            got = reader.read(start, stop)["n"].to_pylist()
            assert got == list(range(6))[start:stop]
            assert log.read(start, stop)["n"].to_pylist() == got
    assert reader.last()["n"].to_pylist() == [5]


def test_a_reader_sees_what_is_appended_later(log, tmp_path):
    reader = FileLog(tmp_path / "log", SCHEMA)
    assert reader.head == 0
    for n in range(5):
        log.append(rows(n))
        assert reader.head == n + 1
        assert reader.read(n, n + 1)["n"].to_pylist() == [n]


def test_an_empty_append_changes_nothing(log, tmp_path):
    assert log.append(SCHEMA.empty_table()) == 0
    assert FileLog(tmp_path / "log", SCHEMA).head == 0


def test_torn_files_are_not_segments(log, tmp_path):
    log.append(rows(0))
    log.close()
    torn = tmp_path / "log" / f"{1:020d}-{5:010d}.tmp"
    torn.write_bytes(b"ARROW1 torn")
    assert FileLog(tmp_path / "log", SCHEMA).head == 1
    again = FileLog(tmp_path / "log", SCHEMA, writer=True)
    assert again.append(rows(7)) == 1
    again.close()
    assert not torn.exists()


def test_a_second_writer_is_refused_until_the_first_has_gone(log, tmp_path):
    with pytest.raises(EnvironmentFault, match="already writes"):
        FileLog(tmp_path / "log", SCHEMA, writer=True)
    code = (
        "import pyarrow as pa; from pathlib import Path; from headrace.log.files import FileLog\n"
        f"FileLog(Path({str(tmp_path / 'log')!r}), pa.schema([('n', pa.int64())]), writer=True)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert "EnvironmentFault" in other.stderr
    log.close()
    FileLog(tmp_path / "log", SCHEMA, writer=True).close()


def test_a_reader_does_not_append(tmp_path):
    with pytest.raises(EnvironmentFault, match="writer=True"):
        FileLog(tmp_path / "log", SCHEMA).append(rows(1))


def test_another_schema_and_missing_values_are_refused(log):
    with pytest.raises(InputError, match="schema"):
        log.append(pa.table({"n": [1]}))
    with pytest.raises(InputError, match="'n' holds a null"):
        log.append(pa.table([[None], ["x"]], schema=SCHEMA))
    assert log.head == 0


def test_columns_that_headrace_logs_since_are_null_in_older_records(log, tmp_path):
    log.append(rows(1, 2))
    newer = pa.schema([*log.read(0, 1).schema, pa.field("arm", pa.string(), metadata=LATER)])
    assert FileLog(tmp_path / "log", newer).read(0, 9)["arm"].to_pylist() == [None, None]
    declared = pa.schema([*log.read(0, 1).schema, pa.field("colour", pa.string())])
    with pytest.raises(IntegrityError, match="other columns than the line declares"):
        FileLog(tmp_path / "log", declared).read(0, 9)


def test_missing_and_damaged_segments_are_named(log, tmp_path):
    for n in range(3):
        log.append(rows(n))
    second = tmp_path / "log" / f"{1:020d}-{1:010d}.arrow"
    body = second.read_bytes()
    second.write_bytes(body[:40])
    with pytest.raises(IntegrityError, match=second.name):
        FileLog(tmp_path / "log", SCHEMA).read(0, 3)
    second.unlink()
    with pytest.raises(IntegrityError, match="missing segment"):
        FileLog(tmp_path / "log", SCHEMA).read(0, 3)


def test_stamps_rise_strictly_even_when_the_clock_goes_back(tmp_path):
    spec = load_line(Path(__file__).parents[2] / "lines" / "coupons.yaml")
    clock = iter([100, 100, 50, 200, 1])
    writer = EventWriter(tmp_path / "events", spec, lambda: next(clock))
    from headrace.events import event_schema

    schema = event_schema(spec)
    row = {"event": "impression", "impression_id": "a", "event_at": 0, "arrival_at": 0, "value": 0}
    row = dict.fromkeys(schema.names) | row
    two = pa.Table.from_pylist([row, row], schema=schema)
    for _ in range(3):
        writer.append(two)
    writer.close()
    writer = EventWriter(tmp_path / "events", spec, lambda: next(clock))
    writer.append(two)
    writer.append(two)
    stamps = writer.read(0, 10)["arrival_at"].cast("int64").to_pylist()
    assert stamps == [100, 100, 101, 101, 102, 102, 200, 200, 201, 201]
    with pytest.raises(InputError, match="arrival_at"):
        writer.append_stamped(two)
    writer.close()
