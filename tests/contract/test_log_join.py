"""Joining small segments: same records, same offsets, few files; readers and kills included."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.errors import EnvironmentFault, IntegrityError
from headrace.log import files
from headrace.log.files import FileLog
from headrace.log.segments import FAN_IN, JOINED_ROWS, Segment, announce, due
from headrace.serving.served import ServedWriter
from tests.lives import PROJECT, Lives

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def rows(first: int, count: int) -> pa.Table:
    return pa.table([pa.array(range(first, first + count), pa.int64())], schema=SCHEMA)


def grow(log: FileLog, sizes: list[int]) -> None:
    for size in sizes:
        log.append(rows(log.head, size))
        log.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.arrow"))


@given(st.lists(st.integers(1, 40), min_size=FAN_IN + 8, max_size=140), st.integers(0, 10**6))
@hypothesis_settings(max_examples=5, deadline=None)
def test_any_sequence_of_appends_reads_back_whole(tmp_path_factory, sizes, seed):
    folder = tmp_path_factory.mktemp("log")
    writer = FileLog(folder, SCHEMA, writer=True)
    reader, dice = FileLog(folder, SCHEMA), random.Random(seed)
    for size in sizes:
        grow(writer, [size])
        start = dice.randrange(writer.head)
        stop = dice.randrange(start, writer.head + 2)
        wanted = list(range(start, min(stop, writer.head)))
        for log in (writer, reader, FileLog(folder, SCHEMA)):
            assert log.head == writer.head
            assert log.read(start, stop)["n"].to_pylist() == wanted
    assert len(names(folder)) == writer.segments < len(sizes)
    writer.close()


def after(sizes: list[int]) -> list[int]:
    """Records of each segment when these appends were joined as they came (without files)."""
    parts: list[Segment] = []
    for size in sizes:
        stop = parts[-1].stop if parts else 0
        parts.append(Segment(stop, stop + size, Path()))
        if count := due(parts):
            parts[-count:] = [Segment(parts[-count].first, stop + size, Path())]
    return [part.rows for part in parts]


@pytest.mark.parametrize("most", [1, 20, 1000])
def test_many_appends_ends_in_few_segments(most):
    dice = random.Random(most)
    sizes = [dice.randint(1, most) for _ in range(30_000)]
    kept = after(sizes)
    assert sum(kept) == sum(sizes)
    assert len(kept) < 6 * FAN_IN + 4 * sum(sizes) / JOINED_ROWS
    assert max(kept) <= JOINED_ROWS


def test_a_large_segment_is_never_copied_for_a_small_one():
    big = Segment(0, JOINED_ROWS, Path())
    small = [Segment(JOINED_ROWS + n, JOINED_ROWS + n + 1, Path()) for n in range(FAN_IN)]
    assert due([big, *small]) == FAN_IN
    assert due([big, *small[:3]]) == due([big]) == due([]) == 0
    half = Segment(0, 1000, Path())
    assert due([half, *(Segment(1000 + n, 1001 + n, Path()) for n in range(14))]) == 0


@pytest.mark.parametrize(("piece_rows", "pieces"), [(4, FAN_IN), (5, 1)])
def test_large_segments_are_joined_piece_by_piece(tmp_path, monkeypatch, piece_rows, pieces):
    monkeypatch.setattr(files, "PIECE_ROWS", piece_rows)
    log = FileLog(tmp_path, SCHEMA, writer=True)
    grow(log, [4] * FAN_IN)
    (name,) = names(tmp_path)
    with pa.memory_map(str(tmp_path / name)) as source:
        assert pa.ipc.open_file(source).num_record_batches == pieces
    assert log.read(0, log.head).equals(rows(0, 4 * FAN_IN))
    log.close()


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read from /proc")
@pytest.mark.parametrize("piece_rows", [4, 5])
def test_a_joined_file_is_no_longer_mapped_when_it_is_removed(tmp_path, monkeypatch, piece_rows):
    monkeypatch.setattr(files, "PIECE_ROWS", piece_rows)
    mapped, unlink, load = [], Path.unlink, Segment.load

    def maps() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count(f"{tmp_path}/")

    def looked_at(path: Path, *, missing_ok: bool = False) -> None:
        mapped.append(maps())
        unlink(path, missing_ok=missing_ok)

    def loaded(segment: Segment, schema: pa.Schema) -> pa.Table:
        table = load(segment, schema)
        assert maps()
        return table

    monkeypatch.setattr(Path, "unlink", looked_at)
    monkeypatch.setattr(Segment, "load", loaded)
    log = FileLog(tmp_path, SCHEMA, writer=True)
    grow(log, [4] * FAN_IN)
    log.close()
    assert mapped == [0] * FAN_IN


def test_what_a_kill_left_between_the_steps_is_read_and_cleaned(tmp_path):
    writer = FileLog(tmp_path, SCHEMA, writer=True)
    for n in range(FAN_IN):
        writer.append(rows(n, 1))
    before = names(tmp_path)
    copies = {name: (tmp_path / name).read_bytes() for name in before}
    old = FileLog(tmp_path, SCHEMA)
    assert old.head == FAN_IN
    assert writer.join() == FAN_IN
    writer.close()
    joined = names(tmp_path)
    assert joined == [f"{0:020d}-{FAN_IN:010d}.arrow"]
    everything = list(range(FAN_IN))
    assert old.read(0, 99)["n"].to_pylist() == everything
    for left in (before, before[5:], before[:5]):  # killed before step 2, or within step 3
        for name in left:
            (tmp_path / name).write_bytes(copies[name])
        assert FileLog(tmp_path, SCHEMA).read(0, 99)["n"].to_pylist() == everything
        FileLog(tmp_path, SCHEMA, writer=True).close()
        assert names(tmp_path) == joined


def test_a_failed_join_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    writer = FileLog(tmp_path, SCHEMA, writer=True)
    for n in range(FAN_IN):
        writer.append(rows(n, 1))
    before, real = names(tmp_path), os.fsync

    def fsync(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        writer.join()
    monkeypatch.setattr(os, "fsync", real)
    assert names(tmp_path) == before
    writer.append(rows(FAN_IN, 3))
    assert writer.join() == FAN_IN
    assert FileLog(tmp_path, SCHEMA).read(0, 99)["n"].to_pylist() == list(range(FAN_IN + 3))
    writer.close()


def test_only_the_writer_joins_and_a_vanished_segment_is_named(tmp_path):
    writer = FileLog(tmp_path, SCHEMA, writer=True)
    for n in range(3):
        writer.append(rows(n, 1))
    reader = FileLog(tmp_path, SCHEMA)
    assert reader.head == 3
    with pytest.raises(EnvironmentFault, match="writer=True"):
        reader.join()
    (tmp_path / f"{1:020d}-{1:010d}.arrow").unlink()
    for log in (writer, reader):
        with pytest.raises(IntegrityError, match=r"restore the (missing )?segment"):
            log.read(0, 3)
    (tmp_path / f"{0:020d}-{2:010d}.arrow").write_bytes(b"")
    (tmp_path / f"{1:020d}-{2:010d}.arrow").write_bytes(b"")
    with pytest.raises(IntegrityError, match="overlaps"):
        _ = FileLog(tmp_path, SCHEMA).head
    writer.close()


def watch(folder: str) -> None:
    """A reader in another process: what it sees never shrinks and is always what was written."""
    log, looks, seen = FileLog(Path(folder), SCHEMA), 0, 0
    print("ready", flush=True)  # noqa: T201
    while looks < 50 or not (Path(folder) / "enough").exists():
        reader = log if looks % 2 else FileLog(Path(folder), SCHEMA)
        head = reader.head
        assert head >= seen, f"the head fell from {seen} to {head}"
        start = max(head - 500, 0)
        found = reader.read(start, head)["n"].to_pylist()
        assert found == list(range(start, head)), f"records {start}-{head} are not what was written"
        looks, seen = looks + 1, head


@pytest.mark.slow
def test_readers_in_other_processes_see_every_record_while_segments_are_joined(tmp_path):
    command = [sys.executable, "-m", "tests.contract.test_log_join", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    watchers = [subprocess.Popen(command, cwd=PROJECT, **pipes) for _ in range(2)]
    assert [watcher.stdout.readline() for watcher in watchers] == ["ready\n", "ready\n"]
    writer, joins = FileLog(tmp_path, SCHEMA, writer=True), 0
    while any(watcher.poll() is None for watcher in watchers):
        writer.append(rows(writer.head, 2))
        joins += writer.join() > 0
        if joins == 40:
            (tmp_path / "enough").touch()
    writer.close()
    for watcher in watchers:
        _, said = watcher.communicate()
        assert watcher.returncode == 0, said
    assert joins >= 40


def test_a_listing_that_a_join_overtakes_is_taken_again(tmp_path, monkeypatch):
    writer = FileLog(tmp_path, SCHEMA, writer=True)
    for n in range(FAN_IN):
        writer.append(rows(n, 1))
    real, joined = os.listdir, []

    def listdir(folder: Path) -> list[str]:
        """The least that POSIX allows while files come and go: those there from start to end."""
        before = set(real(folder))
        joined.append(writer.join())
        return sorted(before & set(real(folder)))

    monkeypatch.setattr(os, "listdir", listdir)
    assert FileLog(tmp_path, SCHEMA).read(0, 99)["n"].to_pylist() == list(range(FAN_IN))
    assert joined == [FAN_IN, 0]
    writer.close()


def test_the_servers_log_stays_in_few_files(tmp_path):
    log = FileLog(tmp_path, SCHEMA, writer=True)
    served = ServedWriter(log, linger_s=0.0)
    served.start()
    for n in range(100):
        served.put(rows(n, 1))
        while served.waiting_rows:
            time.sleep(0.001)
    served.stop()
    assert log.read(0, 200)["n"].to_pylist() == list(range(100))
    assert log.segments < 2 * FAN_IN
    log.close()


def append_for_ever(folder: str) -> None:
    """Append and join; what is acknowledged is written to a file at once."""
    log = FileLog(Path(folder) / "log", SCHEMA, writer=True)
    with (Path(folder) / "acknowledged").open("a", buffering=1) as acknowledged:
        for count in itertools.cycle((1, 7, 2)):
            acknowledged.write(f"{log.append(rows(log.head, count)) + count}\n")
            log.join()


@pytest.mark.slow
def test_a_writer_killed_at_random_moments_tears_nothing(tmp_path):
    dice, left = random.Random(7), set()
    folder = tmp_path / "log"
    (tmp_path / "acknowledged").touch()
    with Lives("tests.contract.test_log_join:append_for_ever", ("pandas",)) as lives:
        for kills in range(1, 500):
            life = lives.live(str(tmp_path), kill_after_s=dice.uniform(0.005, 0.06))
            assert life.killed
            said = max(map(int, (tmp_path / "acknowledged").read_text().split()), default=0)
            reader = FileLog(folder, SCHEMA)
            assert reader.read(0, reader.head)["n"].to_pylist() == list(range(reader.head))
            assert reader.head >= said
            left |= {"torn" for _ in folder.glob("*.tmp")}
            left |= {"covered"} if len(names(folder)) > reader.segments else set()
            if kills >= 40 and reader.head > 100 and "torn" in left:
                break
    assert reader.head > 100
    assert "torn" in left


def test_the_marker_is_replaced_whole(tmp_path):
    segment = Segment.of(tmp_path, 0, 5)
    announce(tmp_path, segment)
    assert (tmp_path / ".joined").read_text() == segment.path.name


if __name__ == "__main__":
    watch(*sys.argv[1:])
