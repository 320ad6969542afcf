"""A tick: bounded, and the same bytes whatever cuts it short."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.events import served_schema
from headrace.ingest.plan import last_vector
from headrace.ingest.tick import TickState, run_tick
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from tests.campaign import SECOND, SPEC, history, tree, vectors


@pytest.mark.parametrize(
    ("appends", "most", "cuts"),
    [
        ([3, 3, 3], 100, [9]),
        ([3, 3, 3], 9, [9]),
        ([3, 3, 3], 8, [6, 9]),
        ([3, 3, 3], 1, [3, 6, 9]),
        ([1, 7, 1, 1], 2, [1, 8, 10]),
        ([5], 2, [5]),
    ],
)
def test_a_tick_ends_where_an_append_ends(settings, appends, most, cuts):
    home, clock = settings.line_home(SPEC.line), itertools.count(1_700_000_000 * SECOND)
    writer = EventWriter(home / "log" / "events", SPEC, lambda: next(clock))
    events, stored = history(2), 0
    for count in appends:
        writer.append(events.slice(stored, count))
        stored += count
    writer.close()
    state, found = TickState.restore(SPEC, home), []
    while (plan := state.plan(most=most)) is not None:
        run_tick(state, plan, None)
        found.append(plan.events[1])
    assert found == cuts
    assert state.at_us == 1_700_000_000 * SECOND + len(appends)


def test_vectors_wait_for_a_tick_unless_they_were_served_before_it(settings):
    home = settings.line_home(SPEC.line)
    schema = served_schema(SPEC)
    blank = {f.name: None if f.nullable else 0 for f in schema} | {"version": "v", "request_id": ""}
    log = FileLog(home / "log" / "served", schema, writer=True)
    rows = [blank | {"impression_id": f"i{n}", "served_at": 10 * n} for n in range(20)]
    log.append(pa.Table.from_pylist(rows, schema))
    log.close()
    assert [last_vector(log, 0, at_us, 4) for at_us in (0, 39, 40, 75, 80, 1000)] == [
        *(4, 4, 8, 8, 12, 20)
    ]
    assert last_vector(log, 15, 0, 4) == 19
    assert last_vector(log, 15, 0, 100) == last_vector(log, 20, 0, 4) == 20


class Cut(BaseException):
    """The process ends here."""


def some_ticks(home: Path, cuts: list[int]) -> None:
    state = TickState.restore(SPEC, home)
    state.save(2)
    for cut in cuts[state.next_tick :]:
        plan = state.plan(cut)
        assert plan is not None
        run_tick(state, plan, None, checkpoint_every=2)


@pytest.mark.faults
def test_a_fault_at_any_durable_step_changes_nothing(settings, tmp_path, monkeypatch):
    events = history(60, 5)
    home = settings.line_home(SPEC.line)
    writer = EventWriter(home / "log" / "events", SPEC)
    writer.append_stamped(events)
    writer.close()
    vectors(home, [f"i{number}" for number in range(300)])
    cuts = [80, 160, 240]
    calm = tmp_path / "calm"
    shutil.copytree(home, calm)
    some_ticks(calm, cuts)
    real, steps = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            raise Cut
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    survived = False
    for kill in range(1, 200):
        stormy = tmp_path / f"stormy{kill}"
        shutil.copytree(home, stormy)
        steps = kill
        try:
            some_ticks(stormy, cuts)
            survived = True
        except Cut:
            some_ticks(stormy, cuts)
        assert {n: b for n, b in tree(stormy).items() if ".tmp" not in n} == tree(calm), kill
        shutil.rmtree(stormy)
        if survived:
            break
    assert survived
