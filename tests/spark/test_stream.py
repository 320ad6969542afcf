"""`headrace stream` from files: the driver killed anywhere, every event once, the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streaming
from streaming import MALFORMED, SPEC, T0

from headrace.account import account
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.sample import head_tick, ticks
from headrace.settings import load_settings
from headrace.store import Store
from headrace.stream.files import Files
from headrace.stream.service import run
from tests.campaign import Nowhere

FILES = 36
KILLS = 9


def arrive(folder: Path, name: str, lines: list[str], at_s: int) -> None:
    """A file as a careful producer brings it: whole, by a rename."""
    partial = folder / f".{name}"
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.utime(partial, (at_s, at_s))
    partial.rename(folder / name)


def once_each(rows: list[dict[str, Any]], sent: list[dict[str, Any]]) -> bool:
    """Whether the log holds what was sent, each event as often as it was."""
    ours = Counter((r["event"], r["impression_id"], r["user_id"]) for r in rows)
    return ours == Counter((e["event"], e["impression_id"], e.get("user_id")) for e in sent)


@pytest.mark.spark
@pytest.mark.faults
def test_a_driver_killed_nine_times_leaves_what_an_undisturbed_one_leaves(tmp_path: Path) -> None:
    folder, sent = tmp_path / "in", streaming.events(6_000, 1)
    folder.mkdir()
    for number in range(FILES):
        lines = [json.dumps(event) for event in sent[number::FILES]] + list(MALFORMED)
        arrive(folder, f"{number:03d}.jsonl", lines, T0 // 10**6 + number)
    (folder / ".half.jsonl").write_text('{"event": "impr')
    stormy, calm = tmp_path / "stormy", tmp_path / "calm"
    streaming.prepare(stormy, 6_000)
    fell = streaming.run_with_kills(stormy, f"files:{folder}", KILLS, 0.9, at_once=1)
    assert fell >= KILLS - 2  # a quick driver may end before the last
    in_order = [event["impression_id"] for n in range(FILES) for event in sent[n::FILES]]
    rows = streaming.log_rows(stormy)
    assert [row["impression_id"] for row in rows] == in_order
    assert once_each(rows, sent)
    manifests = streaming.live_again(stormy, calm)
    ours, theirs = streaming.tree(stormy), streaming.tree(calm)
    assert len(ours.pop("malformed.jsonl").splitlines()) == FILES * len(MALFORMED)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    # a kill while Spark plans a batch may put two files into the next one
    assert FILES - KILLS <= len(manifests) <= FILES
    assert sum(manifest.counts["positives"] for manifest in manifests) > 300


@pytest.mark.spark
def test_a_file_that_spark_cannot_read_is_named_and_its_batch_waits(tmp_path: Path) -> None:
    folder, home = tmp_path / "in", tmp_path / "home"
    folder.mkdir()
    arrive(folder, "a.jsonl", [json.dumps(event) for event in streaming.events(20, 2)], 1)
    arrive(folder, "torn.parquet", ["PAR1"], 2)
    settings = load_settings({"HEADRACE_HOME": str(home)})

    def feed_once() -> None:
        run(settings, SPEC, Files(folder), threading.Event(), once=True, online=Nowhere())

    with pytest.raises(EnvironmentFault, match=r"torn\.parquet is not a Parquet file.*take away"):
        feed_once()
    assert streaming.log_rows(home) == []
    (folder / "torn.parquet").unlink()
    feed_once()
    assert once_each(streaming.log_rows(home), streaming.events(20, 2))


@pytest.mark.spark
def test_a_batch_of_several_files_keeps_the_order_of_their_times(tmp_path: Path) -> None:
    folder, home, sent = tmp_path / "in", tmp_path / "home", streaming.events(40, 2)
    folder.mkdir()
    for number, part in enumerate((sent[:2], sent[2:30], sent[30:])):  # Spark reads large first
        arrive(folder, f"{9 - number}.jsonl", [json.dumps(event) for event in part], 1 + number)
    settings = load_settings({"HEADRACE_HOME": str(home)})
    run(settings, SPEC, Files(folder), threading.Event(), once=True, online=Nowhere())
    rows = streaming.log_rows(home)
    assert [row["impression_id"] for row in rows] == [event["impression_id"] for event in sent]


def parquet(folder: Path, sent: list[dict[str, Any]]) -> None:
    fields = {"event": pa.string(), "impression_id": pa.string(), "user_id": pa.string()}
    fields |= {"item_id": pa.string(), "category": pa.string(), "discount": pa.float64()}
    fields |= {"position": pa.int64(), "event_at": pa.timestamp("us", tz="UTC")}
    rows = pa.Table.from_pylist(sent, schema=pa.schema(fields))
    pq.write_table(rows, folder / ".rows.parquet")
    (folder / ".rows.parquet").rename(folder / "rows.parquet")


@pytest.mark.spark
@pytest.mark.e2e
def test_the_verb_takes_files_as_they_come_until_it_is_stopped(tmp_path: Path) -> None:
    folder, home = tmp_path / "in", tmp_path / "home"
    folder.mkdir()
    environ = os.environ | {"HEADRACE_HOME": str(home)}
    settings = load_settings(environ)
    Store(settings).apply()
    now_us = time.time_ns() // 1_000
    sent = [event | {"event_at": now_us} for event in streaming.events(300, 2)]
    command = "import sys; from headrace.cli import main; sys.argv[0] = 'headrace'; main()"
    arguments = ["stream", "--line", SPEC.line, "--from", f"files:{folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        env=environ, stderr=(tmp_path / "err").open("w"), text=True, start_new_session=True,
    )  # fmt: skip
    try:
        arrive(folder, "a.jsonl", [json.dumps(event) for event in sent[:200]], 1)
        wait(lambda: tick_head(home) >= 200)
        parquet(folder, sent[200:])
        wait(lambda: tick_head(home) >= len(sent))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "err").read_text()
    finally:
        process.kill()  # of one that has ended: nothing
        streaming.end(process)
    rows = [row for row in streaming.log_rows(home) if row["event"] != "mark"]
    assert once_each(rows, sent)
    keys = ("event", "impression_id", "user_id", "discount", "position")
    assert [[row[k] for k in keys] for row in rows] == [[e.get(k) for k in keys] for e in sent]
    assert {row["event_at"].timestamp() for row in rows} == {now_us / 1e6}
    assert "batch 0: 200 events, 0 malformed, log head 200" in (tmp_path / "err").read_text()
    counts = account(settings, SPEC)
    assert (counts["lost"], counts["duplicated"], counts["malformed"]) == (0, 0, 0)
    online = Store(settings).read_online(SPEC, asked(SPEC))
    assert max(online["item_impressions_count_10m"].to_pylist()) > 0


def asked(spec: LineSpec) -> pa.Table:
    columns: dict[str, Any] = {name: [None] for name in spec.columns} | {"item_id": ["c1"]}
    columns["request_at"] = [time.time_ns() // 1_000]
    return pa.table(columns)


def tick_head(home: Path) -> int:
    line = home / "lines" / SPEC.line
    return ticks(line)[-1].events[1] if head_tick(line) else 0


def wait(done: Any, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.2)
