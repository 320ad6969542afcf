"""A home that an earlier release wrote is read by this one, and its ticks come out the same.

`tests/golden/homes/<release>` holds a small line as that release left it: log, ticks, parts, a
checkpoint, versions, champions, quarantine. `HEADRACE_GOLDEN=write pytest` with this file's name
adds the home of the release at hand where it is absent; one that is there is never written again.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headrace.ingest import checkpoint
from headrace.ingest.tick import TickState, run_tick
from headrace.line import LineStore
from headrace.sample import Quarantine, head_tick, ticks
from headrace.settings import PROJECT, load_line
from tests.contract.test_line import publish, state
from tests.e2e.test_ingest_kill import prepare

HOMES = Path(__file__).parent / "homes"
SPEC = load_line(PROJECT / "lines" / "coupons.yaml")
EVENTS, PER_TICK, EVERY = 120, 30, 3
NEEDED = r'^version = "(.+)"$'


def release() -> str:
    (found,) = re.findall(NEEDED, (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    return str(found)


def advance(home: Path) -> TickState:
    state = TickState.restore(SPEC, home)
    while state.events_to < state.logs.events.head:
        plan = state.plan(min(state.events_to + PER_TICK, state.logs.events.head))
        assert plan is not None
        run_tick(state, plan, None, EVERY)
    return state


def write(home: Path) -> None:
    prepare(home, EVENTS)
    advance(home)
    store = LineStore(str(home), "x")
    parent = None
    for step in range(3):
        parent = publish(store, step, parent).version
        store.put_evidence(parent, {"candidate": parent, "rows": 7})
        store.put_verdict(parent, {"passed": True, "reasons": []})
        store.advance(store.champion(), parent, "promote", "golden")
    store.rollback_target()
    Quarantine(home).add(1, 2, ["label_rate: 0.9 is above 0.5"])
    for lock in home.rglob(".lock"):
        lock.unlink()


@pytest.fixture(params=sorted(path.name for path in HOMES.glob("*")) or ["none"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a stored home."""
    if request.param == "none":
        pytest.fail("no golden homes; HEADRACE_GOLDEN=write pytest tests/golden/test_homes.py")
    shutil.copytree(HOMES / request.param, tmp_path / "home")
    return tmp_path / "home"


def test_the_release_at_hand_has_its_home() -> None:
    place = HOMES / release()
    if os.environ.get("HEADRACE_GOLDEN") and not place.exists():
        write(place)
    assert (place / "ticks").is_dir()


def test_ticks_run_again_from_the_stored_log_give_the_stored_rows(
    home: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(home / "log", again / "log")
    advance(again)
    mine, theirs = ticks(again), ticks(home)
    assert [m.to_json() for m in mine] == [m.to_json() for m in theirs]
    parts = [part for m in theirs for part in (m.samples, m.fates, *m.features.values()) if part]
    assert len(parts) > 8
    for part in parts:
        ours, stored = (pq.read_table(root / part, partitioning=None) for root in (again, home))
        assert ours.equals(stored), part


def test_a_stored_checkpoint_goes_on_as_the_log_does(home: Path) -> None:
    head = head_tick(home)
    found = checkpoint.newest(SPEC, home, head, TickState(SPEC, home).logs.served.read)
    assert found is not None
    from_checkpoint = TickState.restore(SPEC, home)
    shutil.rmtree(home / "state")
    from_log = TickState.restore(SPEC, home)
    views = SPEC.views
    for view in views:
        keys = from_log.windows.changed(view, 0, from_log.at_us)
        at = np.full(keys.num_rows, from_log.at_us, dtype=np.int64)
        ours, theirs = (
            one.windows.values(keys, at, view=view) for one in (from_checkpoint, from_log)
        )
        assert keys.num_rows > 0
        assert ours.equals(theirs)
    ours, theirs = (
        np.sort(one.labels.pending_offsets()).tolist() for one in (from_checkpoint, from_log)
    )
    assert ours == theirs


def test_stored_versions_load_and_the_line_goes_on(home: Path) -> None:
    store = LineStore(str(home), "x")
    history = store.history()
    assert [champion.version for champion in history] == ["v000001", "v000002", "v000003"]
    for step, champion in enumerate(history):
        loaded, wanted = store.load(champion.version)[1], state(step)
        assert loaded.keys() == wanted.keys()
        assert all(np.array_equal(loaded[name], wanted[name]) for name in wanted)
        assert store.verdict(champion.version) == {"passed": True, "reasons": []}
    newer = publish(store, 3, "v000003")
    store.advance(store.champion(), newer.version, "promote", "this release")
    assert [q["reasons"] for q in Quarantine(home).intervals()] == [
        ["label_rate: 0.9 is above 0.5"]
    ]
