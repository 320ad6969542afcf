"""A learner killed by SIGKILL at random moments ends in the states of an undisturbed one."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from headrace.atomic import write_json
from headrace.model.delta import same_bits
from headrace.sample import Quarantine
from headrace.settings import PROJECT
from tests.contract.written_line import Line, bootstrap, opened
from tests.lives import Lives

STEP = 2
MOST_KILLS = 30


def live(root: str) -> None:
    """What the learner's process does, with chunks of a fixed number of ticks."""
    from headrace.learner import Learner

    line = opened(Path(root))
    learner, before = Learner(line.settings, line.spec, ticks_a_step=STEP), -1
    while learner.next_tick != before:
        before = learner.next_tick
        learner.look()


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
    dice, kills, moved = random.Random(11), 0, 0
    with Lives("tests.e2e.test_learner_kill:live", ("headrace.learner", "pandas")) as lives:
        whole = lives.live(str(tmp_path / "calm"))
        assert whole.code == 0
        ended, reach_s = False, whole.lived_s / 3
        while not ended:
            before = len(told(stormy))
            after_s = dice.uniform(0, reach_s) if kills < MOST_KILLS else None
            life = lives.live(str(tmp_path / "stormy"), kill_after_s=after_s)
            kills, ended = kills + life.killed, not life.killed
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
    write_json(
        PROJECT / "out" / "faults" / "learner_kills.json",
        {
            "what": "the learner's process killed by SIGKILL at random moments",
            "command": "pytest tests/e2e/test_learner_kill.py",
            "kills": kills,
            "runs": 1,
            "stages": {"with steps promoted in that life": moved, "without": kills - moved},
            "end": "the same champions, bit for bit, as in an undisturbed run",
        },
    )
