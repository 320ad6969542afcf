"""The follower of a log, killed by SIGKILL at random moments: no row is lost, none comes twice."""

from __future__ import annotations

import random
import shutil
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.scoring import nearline
from headrace.settings import find_line, load_settings
from tests.contract.scored_line import AlikeLine
from tests.faults.told import tell
from tests.lives import Lives

KILLS, MOVED = 10, 3
MOST = 40


def live(root: str) -> None:
    """What `headrace score-log --once` does, in small parts."""
    home, lines = Path(root) / "home", Path(root) / "lines"
    settings = load_settings({"HEADRACE_HOME": str(home), "HEADRACE_LINES_DIR": str(lines)})
    spec = find_line(settings, "alike")
    nearline.run(settings, spec, threading.Event(), "impressions", once=True, most=MOST)


def written(root: Path) -> list[nearline.Part]:
    return nearline.parts(nearline.scores_folder(root / "home" / "lines" / "alike", "impressions"))


def scores(root: Path) -> pa.Table:
    tables = [pq.read_table(part.path).drop(["scored_at"]) for part in written(root)]
    return pa.concat_tables(tables)


@pytest.mark.e2e
@pytest.mark.faults
def test_a_killed_follower_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path / "calm")
    line.crown(line.publish(1))
    for number in range(60):
        line.traffic(number, count=24)
        line.tick()
    shutil.copytree(tmp_path / "calm", tmp_path / "stormy")
    # the registry of Feast names the folder of the history that it was made for
    AlikeLine(tmp_path / "stormy")
    dice, kills, moved, recovered = random.Random(3), 0, 0, []
    preload = ("headrace.scoring.nearline", "feast", "pandas")
    with Lives("tests.e2e.test_score_kill:live", preload) as lives:
        whole = lives.live(str(tmp_path / "calm"))
        assert whole.code == 0
        expected = scores(tmp_path / "calm")
        while kills < KILLS or moved < MOVED:
            before, ended, killed_at = len(written(tmp_path / "stormy")), False, None
            while not ended:
                after_s = dice.uniform(0, whole.lived_s)
                life = lives.live(str(tmp_path / "stormy"), kill_after_s=after_s)
                assert life.killed or life.code == 0
                kills, ended = kills + life.killed, not life.killed
                after = len(written(tmp_path / "stormy"))
                moved += life.killed and after > before
                if after > before and killed_at is not None:
                    first = written(tmp_path / "stormy")[before].path.stat().st_mtime
                    recovered.append(first - killed_at)
                before, killed_at = after, time.time()
            assert scores(tmp_path / "stormy").equals(expected)
            shutil.rmtree(tmp_path / "stormy" / "home" / "lines" / "alike" / "scores")
    assert expected.num_rows == 60 * 24
    tell(
        "score_log_kills",
        "`headrace score-log` killed by SIGKILL at random moments",
        "tests/e2e/test_score_kill.py",
        {"with parts written in that life": moved, "without": kills - moved},
        "every impression scored once, bit for bit as in an undisturbed run",
        {"lost": 0, "duplicated": 0},  # as the rows are equal
        recovered,
    )
