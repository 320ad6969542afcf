"""A rollback: at once, out of what is learned next, and all or nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace import cycle, promote, train
from headrace.cycle import Interval
from headrace.errors import ConflictError
from headrace.line import LineStore
from headrace.sample import Quarantine
from headrace.serving.swap import Follower
from tests.contract.written_line import ROWS, Line


def test_a_bad_version_promoted_by_force_is_rolled_back_from_memory_and_stays_out(
    line: Line,
) -> None:
    line.tick(8, click=np.logical_not)
    good = line.champion
    poisoned = line.learn()
    assert poisoned.version is not None
    follower = Follower(line.spec, LineStore(line.home, line.spec.line))
    follower.start(prepare=lambda: None)
    try:
        await_version(follower, good, 60)
        line.store.advance(line.store.champion(), poisoned.version, "force", "drill")
        await_version(follower, poisoned.version, 60)
        before = follower.delivered
        back = promote.roll_back(line.settings, line.spec, reason="drill")
        await_version(follower, good, 60)
        # a flip of what waits: nothing is read, nothing applied
        assert follower.delivered == replace(
            before, swaps=before.swaps + 1, from_memory=before.from_memory + 1
        )
    finally:
        follower.stop()
    assert back.version == good
    assert [(q["from"], q["to"]) for q in Quarantine(line.home).intervals()] == [(34, 48)]
    line.tick(9)
    healed = line.learn()
    line.tick(4)
    ended = line.finish(healed)
    assert (ended.outcome, ended.reasons) == ("promoted", ())
    version = line.store.get(line.champion)
    assert (version.parent, version.from_tick, version.to_tick) == (good, 34, 57)
    assert version.excluded == [[34, 48]]
    assert version.rows == 9 * ROWS


def await_version(follower: Follower, version: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not follower.ready or follower.current().version.version != version:
        assert time.monotonic() < deadline, f"{version} did not serve within {seconds} s"
        time.sleep(0.01)


def test_a_rollback_that_loses_the_race_quarantines_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = line.learn()
    assert trained.version is not None
    present = line.store.advance(line.store.champion(), trained.version, "force", "drill")
    target = LineStore.rollback_target

    def overtaken(store: LineStore, to: str | None) -> Any:
        found = target(store, to)
        line.store.advance(present, "v000001", "promote", "another was faster")
        return found

    monkeypatch.setattr(LineStore, "rollback_target", overtaken)
    with pytest.raises(ConflictError, match="another was faster"):
        promote.roll_back(line.settings, line.spec, reason="drill")
    assert Quarantine(line.home).intervals() == []


def test_a_rollback_from_a_full_training_quarantines_nothing(line: Line) -> None:
    trained = train.full(line.settings, line.spec, 40)
    line.store.advance(line.store.champion(), trained, "force", "drill")
    assert promote.roll_back(line.settings, line.spec, reason="drill").version == "v000001"
    assert Quarantine(line.home).intervals() == []


def test_a_rollback_may_leave_its_ticks_to_be_learned_again(line: Line) -> None:
    trained = line.learn()
    assert trained.version is not None
    line.store.advance(line.store.champion(), trained.version, "force", "drill")
    promote.roll_back(line.settings, line.spec, reason="drill", learn_again=True)
    assert cycle.plan(line.settings, line.spec) == Interval(34, 40)
