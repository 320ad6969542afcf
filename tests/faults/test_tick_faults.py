"""Ticks on a full disk, over torn files, across clock jumps, and before a Redis that goes."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench._redis import ABSENT, RedisServer, installed
from headrace.atomic import disk_faults
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import event_schema
from headrace.ingest import checkpoint
from headrace.ingest.online import FeastOnline, catch_up, patient
from headrace.ingest.tick import TickState, run_tick
from headrace.log.stamp import EventWriter
from headrace.sample import head_tick
from headrace.settings import PROJECT, Settings, load_line, load_settings
from headrace.store import Store
from tests.campaign import history, tree
from tests.e2e.test_ingest_kill import last_parts, prepare, read_again
from tests.faults.proxy import Proxy
from tests.faults.told import tell

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

SPEC: LineSpec = load_line(PROJECT / "lines" / "coupons.yaml")
EVENTS = 1_500
PER_TICK = 50
BLOWS = 15
TEST = "tests/faults/test_tick_faults.py"
ALIKE = "every file as in an undisturbed run"


def begun(home: Path) -> TickState:
    """The state to go on from, with the checkpoint that a fault prevented."""
    state = TickState.restore(SPEC, home)
    state.save(4)
    checkpoint.prune(home)
    return state


def advance(home: Path) -> None:
    """Run ticks of a fixed number of events to the end of the log."""
    state = begun(home)
    while state.events_to < (head := state.logs.events.head):
        plan = state.plan(min(state.events_to + PER_TICK, head))
        assert plan is not None
        run_tick(state, plan, None, 4)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("campaign") / "logs"
    prepare(home, EVENTS)
    return home


@pytest.fixture(scope="module")
def calm(logs: Path) -> Path:
    """The home after an undisturbed run."""
    home = logs.with_name("calm")
    shutil.copytree(logs, home)
    advance(home)
    return home


def differing(home: Path, calm: Path) -> list[str]:
    ours, theirs = tree(home), tree(calm)
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no small disk: mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_again_and_again_ends_in_the_same_bytes(
    logs: Path, calm: Path, tmp_path: Path
) -> None:
    dice, fell, recovered, again = random.Random(2), Counter[str](), [], []
    with small_disk(tmp_path / "disk", "16m") as disk:
        home, ballast = disk / "home", disk / "ballast"
        shutil.copytree(logs, home)
        while head_tick(home) < head_tick(calm):
            room = shutil.disk_usage(disk).free - dice.randrange(4_000, 60_000)
            ballast.write_bytes(bytes(max(room, 0)))
            before = head_tick(home)
            with pytest.raises(EnvironmentFault, match="make room on the disk"):
                with disk_faults(home):
                    advance(home)
                raise EnvironmentFault("make room on the disk: not met")  # the end was reached
            fell["with ticks committed before" if head_tick(home) > before else "at once"] += 1
            ballast.unlink()
            plan_left = any((home / "ticks").glob(f"{head_tick(home):08d}.plan.json"))
            again.append(len(read_again(home)) + plan_left)
            began = time.monotonic()
            state = begun(home)
            if (plan := state.plan(state.events_to + PER_TICK)) is not None:
                run_tick(state, plan, None, 4)
            recovered.append(time.monotonic() - began)
        assert differing(home, calm) == []
    assert fell.total() > 5
    assert fell["with ticks committed before"] > 1
    counts = {"lost": 0, "duplicated": 0}  # as the bytes are equal
    what = "the disk of the collector full"
    tell("full_disk", what, TEST, fell, ALIKE, counts, recovered, again, "ticks")


def test_a_torn_or_altered_file_is_named_or_made_good_and_never_believed(
    logs: Path, calm: Path, tmp_path: Path
) -> None:
    """Each kind of file that a power cut can tear; half a run, damage, then the rest."""
    dice, ends = random.Random(6), Counter[str]()
    half = tmp_path / "half"
    shutil.copytree(logs, half)
    state = begun(half)
    for _ in range(head_tick(calm) // 2):
        plan = state.plan(state.events_to + PER_TICK)
        assert plan is not None
        run_tick(state, plan, None, 4)
    plan = state.plan(state.events_to + PER_TICK)
    assert plan is not None
    state.store_plan(plan)
    kinds = {
        "log segment": sorted((half / "log" / "events").glob("*.arrow"))[-1:],
        "served segment": sorted((half / "log" / "served").glob("*.arrow"))[-1:],
        "newest manifest": sorted((half / "ticks").glob("[0-9]*[0-9].json"))[-1:],
        "newest plan": sorted((half / "ticks").glob("*.plan.json"))[-1:],
        "checkpoint": [p for p in sorted((half / "state").rglob("*")) if p.is_file()][-3:],
    }
    assert all(kinds.values()), kinds
    for kind, files in kinds.items():
        for path in files:
            for cut in (0, dice.randrange(1, max(path.stat().st_size, 2))):
                home = tmp_path / "damaged"
                shutil.copytree(half, home)
                victim = home / path.relative_to(half)
                victim.write_bytes(victim.read_bytes()[:cut])
                try:
                    advance(home)
                except IntegrityError as problem:
                    assert str(victim.relative_to(home)) in str(problem) or home.name in str(
                        problem
                    )
                    ends[f"{kind} named"] += 1
                else:
                    assert differing(home, calm) == [], kind
                    ends[f"{kind} made good"] += 1
                shutil.rmtree(home)
    counts = {"lost": 0, "duplicated": 0}
    end = "named with its remedy, or every file as in an undisturbed run"
    tell("torn_files", "the newest file of each kind cut short", TEST, ends, end, counts)


def test_a_clock_that_jumps_leaves_stamps_in_order_and_ticks_that_can_be_repeated(
    tmp_path: Path,
) -> None:
    dice, events, at = random.Random(8), history(40), [1_700_000_000_000_000]
    day_us, jumps = 86_400_000_000, Counter[str]()

    def clock() -> int:
        jump = dice.choice([0, 0, 0, dice.randrange(-3 * day_us, 3 * day_us)])
        jumps["forwards" if jump > 0 else "backwards"] += jump != 0
        at[0] += 50_000 + jump
        return at[0]

    home = tmp_path / "jumpy"
    writer = EventWriter(home / "log" / "events", SPEC, clock)
    for start in range(0, events.num_rows, 20):
        writer.append(events.slice(start, 20))
    stamps = writer.read(0, writer.head)["arrival_at"].cast("int64").to_numpy()
    assert np.all(np.diff(stamps) >= 0)
    assert np.unique(stamps).size == -(-events.num_rows // 20)
    assert (
        writer.read(0, writer.head)
        .drop_columns("arrival_at")
        .equals(events.drop_columns("arrival_at"))
    )
    writer.close()
    (home / "log" / "served").mkdir()
    again = tmp_path / "again"
    shutil.copytree(home, again)
    advance(home)
    advance(again)
    assert differing(again, home) == []
    assert min(jumps.values()) > 3
    counts = {"lost": 0, "duplicated": 0}
    end = "stamps rise, nothing is changed, and the ticks run again to the same bytes"
    tell("clock_jumps", "the clock jumps by up to three days", TEST, jumps, end, counts)


def online_rows(settings: Settings, home: Path) -> dict[str, Any]:
    """Features of every user and item that a part names, as a server reads them."""
    users = [f"u{n}" for n in range(20)]
    asked = {name: [None] * len(users) for name in SPEC.columns} | {"user_id": users}
    asked |= {"item_id": [f"c{n % 6}" for n in range(len(users))], "request_at": [0] * len(users)}
    schema = [event_schema(SPEC).field(name) for name in SPEC.columns]
    table = pa.table(asked, schema=pa.schema([*schema, pa.field("request_at", pa.int64())]))
    found: dict[str, Any] = Store(settings).read_online(SPEC, table).to_pydict()
    return found


def test_a_redis_that_is_killed_and_cut_off_in_mid_push_ends_up_complete(
    logs: Path, calm: Path, tmp_path: Path
) -> None:
    if not installed():
        pytest.skip(ABSENT)
    dice, recovered, again = random.Random(9), [], []
    server = RedisServer(tmp_path, "h@sh")
    server.start()
    (tmp_path / "lines").mkdir()
    shutil.copy(PROJECT / "lines" / "coupons.yaml", tmp_path / "lines")
    with Proxy(server.port) as proxy:
        settings = load_settings(
            {
                "HEADRACE_HOME": str(tmp_path / "home"),
                "HEADRACE_LINES_DIR": str(tmp_path / "lines"),
                "HEADRACE_ONLINE_STORE": server.url.replace(str(server.port), str(proxy.port)),
            }
        )
        Store(settings).apply()
        home = settings.line_home(SPEC.line)
        shutil.copytree(logs, home, dirs_exist_ok=True)
        online, ended, kills = FeastOnline(settings, SPEC), threading.Event(), 0

        def blows() -> None:
            nonlocal kills
            for blow in range(BLOWS):
                if ended.wait(dice.uniform(0.05, 0.5)):
                    return
                proxy.cut()
                if blow % 3 == 0:
                    server.stop()  # and all that it held is gone
                    server.start()
                    kills += 1
                time.sleep(dice.uniform(0, 0.1))
                proxy.heal()

        state = begun(home)
        failures: list[float] = []
        push = patient(online, state, threading.Event(), lambda: failures.append(time.monotonic()))
        thread = threading.Thread(target=blows)
        thread.start()
        try:
            while state.events_to < state.logs.events.head:
                plan = state.plan(state.events_to + PER_TICK)
                assert plan is not None
                met = len(failures)
                run_tick(state, plan, push, 4)
                if len(failures) > met:
                    recovered.append(time.monotonic() - failures[met])
                    again.append(len(failures) - met)
        finally:
            ended.set()
            thread.join()
            proxy.heal()
        catch_up(TickState.restore(SPEC, home), online)  # what a next start does
        mine = online_rows(settings, home)
        server.stop()
        server.start()
        catch_up(TickState.restore(SPEC, home), FeastOnline(settings, SPEC))
        assert online_rows(settings, home) == mine  # filled anew from the parts
        plain = replace(settings, home=tmp_path / "plain", online_store=None)
        Store(plain).apply()
        shutil.copytree(calm, plain.line_home(SPEC.line), dirs_exist_ok=True)
        catch_up(TickState.restore(SPEC, plain.line_home(SPEC.line)), FeastOnline(plain, SPEC))
        assert online_rows(plain, home) == mine
        assert last_parts(home) == last_parts(calm)
        server.stop()
    assert failures
    tell(
        "redis",
        "Redis cut off by the network in mid-push, and killed and started empty",
        TEST,
        {"cuts": proxy.cuts, "kills": kills},
        "every online row as in an undisturbed run",
        {"lost": 0, "duplicated": 0},
        recovered,
        again,
        "pushes",
    )
