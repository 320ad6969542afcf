"""A learner killed by SIGKILL at random moments ends in the states of an undisturbed one."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.model.delta import same_bits
from headrace.sample import Quarantine
from tests.contract.written_line import Line, bootstrap, opened
from tests.diary import Diary, Work
from tests.faults.told import tell
from tests.lives import Lives

STEP = 2
MOST_KILLS = 30


def live(root: str) -> None:
    """What the learner's process does, with chunks of a fixed number of ticks."""
    from headrace.learner import Learner

    line, diary = opened(Path(root)), Diary(Path(root) / "diary")
    learner, before = Learner(line.settings, line.spec, ticks_a_step=STEP), -1
    while learner.next_tick != before:
        before = learner.next_tick
        diary.begins(before)
        learner.look()
        if learner.next_tick != before:
            diary.done(before)


def told(line: Line) -> list[tuple[str, int, int]]:
    versions = [line.store.get(champion.version) for champion in line.store.history()]
    return [(v.fingerprint, v.from_tick, v.to_tick) for v in versions]


@pytest.mark.e2e
@pytest.mark.faults
def test_a_killed_learner_loses_nothing_and_repeats_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    bootstrap(tmp_path / "calm")
    calm = opened(tmp_path / "calm")
    calm.tick(120)
    calm.tick(STEP, click=np.ones_like)
    calm.tick(20)
    shutil.copytree(tmp_path / "calm", tmp_path / "stormy")
    stormy = opened(tmp_path / "stormy")
    dice, moved, killed_at = random.Random(11), 0, []
    with Lives("tests.e2e.test_learner_kill:live", ("headrace.learner", "pandas")) as lives:
        whole = lives.live(str(tmp_path / "calm"))
        assert whole.code == 0
        ended, reach_s = False, whole.lived_s / 3
        while not ended:
            before = len(told(stormy))
            after_s = dice.uniform(0, reach_s) if len(killed_at) < MOST_KILLS else None
            life = lives.live(str(tmp_path / "stormy"), kill_after_s=after_s)
            ended = not life.killed
            killed_at += [time.monotonic()] * life.killed
            came_further = len(told(stormy)) > before
            moved += life.killed and came_further
            if not came_further:  # died in its start: the machine may be busier than before
                reach_s = min(1.25 * reach_s, 4 * whole.lived_s)
            assert life.killed or life.code == 0
    assert moved >= 2
    assert told(stormy) == told(calm)
    assert same_bits(stormy.store.load(stormy.champion)[1], calm.store.load(calm.champion)[1])
    refused = [(q["from"], q["to"]) for q in Quarantine(stormy.home).intervals()]
    assert refused == [(160, 162)]
    work = Work.between(tmp_path / "stormy" / "diary", killed_at)
    tell(
        "learner_kills",
        "the learner's process killed by SIGKILL at random moments",
        "tests/e2e/test_learner_kill.py",
        {"with steps promoted in that life": moved, "without": len(killed_at) - moved},
        "the same champions, bit for bit, as in an undisturbed run",
        {"lost": 0, "duplicated": 0},  # as the champions are the same, one by one
        work.recovered_s,
        work.repeated,
        "steps",
    )
