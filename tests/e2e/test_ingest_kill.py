"""Exactly once: ticks killed at 200 random moments end in the bytes of an undisturbed run."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.ingest import checkpoint
from headrace.ingest.online import catch_up
from headrace.ingest.tick import TickState, run_tick
from headrace.log.files import FileLog
from headrace.sample import head_tick, read_tick, ticks
from headrace.settings import PROJECT, load_line
from tests.campaign import tree
from tests.diary import Diary, Work
from tests.faults.told import tell
from tests.lives import Lives

SECOND = 1_000_000
PER_TICK = 50
CHECKPOINT_EVERY = 4
KILLS = 200
EACH = 2  # kills that must fall into every stage; more are spent until they have
MOST = 500
STAGES = (
    *("restoring", "plan being written", "plan stored", "part being written", "parts written"),
    *("manifest being written", "checkpoint being written", "pushing"),
)


def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "coupons.yaml")


class Online:
    """A store of the last row of each key, durable when a push returns."""

    def __init__(self, path: Path) -> None:
        self._rows = sqlite3.connect(path)
        self._rows.execute("PRAGMA journal_mode=WAL")
        self._rows.execute("PRAGMA synchronous=FULL")
        self._rows.execute("CREATE TABLE IF NOT EXISTS rows (key PRIMARY KEY, row)")
        self._rows.execute("CREATE TABLE IF NOT EXISTS pushes (at, view)")

    def push(self, view: str, rows: pa.Table) -> None:
        with self._rows:
            self._rows.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", keyed(view, rows))
            at_us = rows[f"{view}__at"][0].as_py()
            self._rows.execute("INSERT INTO pushes VALUES (?, ?)", (at_us, view))

    def mark_us(self, view: str) -> int | None:
        newest = self._rows.execute("SELECT max(at) FROM pushes WHERE view = ?", (view,))
        found: int | None = newest.fetchone()[0]
        return found

    def clear(self, view: str) -> None:
        raise AssertionError(f"{view} holds the rows of another past")

    def rows(self) -> dict[str, str]:
        """The stored row of each key."""
        return dict(self._rows.execute("SELECT key, row FROM rows"))

    def pushes(self) -> list[tuple[int, str]]:
        """Time and view of every push, in order."""
        return list(self._rows.execute("SELECT at, view FROM pushes ORDER BY rowid"))

    def close(self) -> None:
        self._rows.close()


def keyed(view: str, rows: pa.Table) -> list[tuple[str, str]]:
    """Each row as text, and its key before it."""
    key = spec().views[view][0].key
    return [
        (f"{view} {[row[part] for part in key]}", json.dumps(row, default=str))
        for row in rows.to_pylist()
    ]


def last_parts(home: Path) -> dict[str, str]:
    """The newest committed feature row of each key."""
    return {
        key: row
        for manifest in ticks(home)
        for view, path in manifest.features.items()
        for key, row in keyed(view, pq.read_table(home / path, partitioning=None))
    }


def read_again(home: Path) -> range:
    """Committed ticks that a start computes again: those behind the newest checkpoint."""
    head = head_tick(home)
    kept = [int(path.name[2:]) for path in (home / "state").glob("b=*[0-9]")]
    return range(max((tick + 1 for tick in kept if tick < head), default=0), head)


def live(folder: str) -> None:
    """What the ingest process does, with ticks of a fixed number of events."""
    home = Path(folder)
    diary = Diary(home.parent / f"{home.name}.diary")
    for tick in read_again(home):
        diary.begins(tick)
    state = TickState.restore(spec(), home)
    state.save(CHECKPOINT_EVERY)
    checkpoint.prune(home)
    (home.parent / f"{home.name}.restored").touch()
    with closing(Online(home.parent / f"{home.name}.db")) as online:
        catch_up(state, online)
        while state.events_to < state.logs.events.head:
            plan = state.plan(state.events_to + PER_TICK)
            assert plan is not None
            diary.begins(plan.tick)
            run_tick(state, plan, online.push, CHECKPOINT_EVERY)
            diary.done(plan.tick)


def stage(home: Path) -> str:
    """Where a kill fell, by the files that it left."""
    done = head_tick(home)
    name = f"{done:08d}"
    if any((home / "state").glob("*.tmp")):
        return "checkpoint being written"
    if (home / "ticks" / f"{name}.json.tmp").exists():
        return "manifest being written"
    if any((home / "ticks").glob("*.plan.json.tmp")):
        return "plan being written"
    if (home / "ticks" / f"{name}.plan.json").exists():
        if any(home.rglob("b=*.parquet.tmp")):
            return "part being written"
        return "parts written" if any(home.rglob(f"b={name}.parquet")) else "plan stored"
    if not (home.parent / f"{home.name}.restored").exists():
        return "restoring"
    if done == 0:
        return "between ticks"
    with closing(Online(home.parent / f"{home.name}.db")) as online:
        newest = read_tick(home, done - 1)
        pushed = {view for at, view in online.pushes() if at == newest.at_us}
    return "between ticks" if pushed == newest.features.keys() else "pushing"


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


def check(stormy: Path, calm: Path) -> None:
    """The same bytes in every file, and online what the last parts say, pushed in order."""
    ours, theirs = tree(stormy), tree(calm)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    for home in (stormy, calm):
        with closing(Online(home.parent / f"{home.name}.db")) as online:
            pushes = online.pushes()
            assert online.rows() == last_parts(home)
        assert [at for at, _ in pushes] == sorted(at for at, _ in pushes)
        assert set(pushes) == {(m.at_us, view) for m in ticks(home) for view in m.features}


@pytest.mark.e2e
@pytest.mark.faults
def test_ticks_killed_two_hundred_times_end_in_the_same_bytes(tmp_path):
    logs, calm = tmp_path / "logs", tmp_path / "calm"
    prepare(logs, 5_000)
    shutil.copytree(logs, calm)
    dice, hit, in_ticks, works = random.Random(5), Counter(), set(), []
    with Lives("tests.e2e.test_ingest_kill:live", ("pandas", "pyarrow.dataset")) as lives:
        assert lives.live(str(calm)).code == 0
        assert sum(manifest.counts["corrections"] for manifest in ticks(calm)) > 50
        for run in range(MOST):  # a run through the whole log, as many as the kills need
            stormy = tmp_path / f"stormy{run}"
            shutil.copytree(logs, stormy)
            restored, ended, kills = tmp_path / f"{stormy.name}.restored", False, []
            while not ended:
                restored.unlink(missing_ok=True)
                enough = hit.total() >= KILLS and min(hit[name] for name in STAGES) >= EACH
                after_s = None if enough else dice.uniform(0, dice.choice((0.05, 0.5, 0.5, 0.5)))
                life = lives.live(str(stormy), kill_after_s=after_s)
                ended = not life.killed
                if life.killed:
                    kills.append(time.monotonic())
                    hit[stage(stormy)] += 1
                    in_ticks.add((run, head_tick(stormy)))
            assert life.code == 0
            check(stormy, calm)
            works.append(Work.between(tmp_path / f"{stormy.name}.diary", kills))
            shutil.rmtree(stormy)
            if enough:
                break
    assert KILLS <= hit.total() <= MOST
    assert min(hit[name] for name in STAGES) >= EACH
    assert len(in_ticks) > 30
    work = Work.of(works)
    assert work.recovered_s
    tell(
        "ingest_kills",
        "ticks of the ingest process killed by SIGKILL at random moments",
        "tests/e2e/test_ingest_kill.py",
        dict(hit.most_common()),
        "every file and every online row as in an undisturbed run",
        {"lost": 0, "duplicated": 0},  # as the bytes are equal
        work.recovered_s,
        work.repeated,
        "ticks",
    )
