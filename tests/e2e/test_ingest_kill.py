"""Exactly once: ticks killed anywhere, many times, end in the bytes of an undisturbed run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.ingest.online import catch_up
from headrace.ingest.service import resume
from headrace.ingest.tick import run_tick
from headrace.log.files import FileLog
from headrace.sample import head_tick, ticks
from headrace.settings import PROJECT, load_line

SECOND = 1_000_000
PER_TICK = 100
KILLS = 10


def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "coupons.yaml")


class Record:
    """An online store of which a file remembers the times that were pushed, and to which view."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("a", buffering=1)

    def push(self, view: str, rows: pa.Table) -> None:
        self.file.write(f"{rows['event_timestamp'].cast('int64')[0].as_py()} {view}\n")

    def mark_us(self, view: str) -> int | None:
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return max((int(at) for at, name in lines if name == view), default=None)

    def clear(self, view: str) -> None:
        raise AssertionError(f"{view} holds the rows of another past")


def main(home: Path) -> None:
    """What the ingest process does, with ticks of a fixed number of events."""
    line = spec()
    state = resume(line, home)
    record = Record(home.parent / f"{home.name}.pushed")
    print("ready", flush=True)  # noqa: T201
    catch_up(state, record)
    while state.events_to < state.logs.events.head:
        plan = state.plan(state.events_to + PER_TICK)
        assert plan is not None
        run_tick(state, plan, record.push)
    record.file.close()


def prepare(home: Path, count: int) -> None:
    """Both logs of a lively campaign: one in seven clicks, some twice, some orphaned."""
    line, rng = spec(), np.random.default_rng(3)
    rows, vectors = [], []
    blank = {f.name: None if f.nullable else 0 for f in served_schema(line)}
    for number in range(count):
        at = (1_700_000_000 + number) * SECOND
        user, item = f"u{rng.integers(20)}", f"c{rng.integers(6)}"
        base = {"impression_id": f"i{number}", "user_id": user, "item_id": item, "category": "x"}
        vectors.append(
            blank | base | {"request_id": "r", "version": "v000001", "served_at": at - 1}
        )
        shown = base | {"event": "impression", "event_at": at, "arrival_at": at, "value": 0}
        rows.append(shown)
        if rng.random() < 0.03:
            rows.append(shown | {"arrival_at": at + 7 * SECOND + 1})
        if rng.random() < 0.15:
            click = {"event": "click", "impression_id": f"i{number}", "value": 1}
            if rng.random() < 0.1:
                click["impression_id"] = f"nobody{number}"
            late = at + int(rng.integers(400)) * SECOND + 2
            rows.append(click | {"event_at": late, "arrival_at": late})
    rows = sorted(rows, key=lambda row: row["arrival_at"])[:count]
    for place, row in enumerate(rows):  # stamps differ, so that any count of events is a tick
        row["arrival_at"] += place
    for name, schema, records in (
        ("events", event_schema(line), rows),
        ("served", served_schema(line), vectors),
    ):
        log = FileLog(home / "log" / name, schema, writer=True)
        for start in range(0, len(records), 500):
            log.append(pa.Table.from_pylist(records[start : start + 500], schema=schema))
        log.close()


def tree(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def start(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, str(home)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    with process:
        return process.wait(timeout=300)


@pytest.mark.e2e
@pytest.mark.faults
def test_ticks_killed_ten_times_end_in_the_same_bytes(tmp_path):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    for home in (calm, stormy):
        prepare(home, 15_000)
    began = time.monotonic()
    assert end(start(calm)) == 0
    span = time.monotonic() - began
    dice, kills, inside = random.Random(5), 0, set()
    while kills < KILLS:
        process = start(stormy)
        time.sleep(dice.uniform(0, span / KILLS))
        if process.poll() is None:
            process.kill()
            kills += 1
        end(process)
        inside.add(head_tick(stormy))
        if head_tick(stormy) == head_tick(calm):
            break
    assert end(start(stormy)) == 0
    assert kills >= 5
    assert len(inside) >= 5  # the kills fell into different ticks
    ours, theirs = tree(stormy), tree(calm)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert sum(manifest.counts["corrections"] for manifest in ticks(calm)) > 100
    for home in (calm, stormy):
        pushed = [line.split() for line in Path(f"{home}.pushed").read_text().splitlines()]
        times = [int(at) for at, _ in pushed]
        assert times == sorted(times)
        assert {(int(at), view) for at, view in pushed} == set(_expected(home))


def _expected(home: Path) -> Iterator[tuple[int, str]]:
    for manifest in ticks(home):
        for view in manifest.features:
            yield manifest.at_us, view


if __name__ == "__main__":
    main(Path(sys.argv[1]))
