"""The journal of a learner: appended, torn lines passed over, old days forgotten; its heartbeat."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace import journal, turns

DAY_US = 86_400_000_000
NOON_US = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


def test_steps_are_read_in_order_across_days(tmp_path: Path) -> None:
    for number in range(3):
        journal.write(tmp_path, {"n": number, "ended_us": NOON_US + number * DAY_US // 2})
    assert [entry["n"] for entry in journal.read(tmp_path)] == [0, 1, 2]
    assert len(list((tmp_path / "learner").iterdir())) == 2


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    journal.write(tmp_path, {"n": 0, "ended_us": NOON_US})
    (path,) = (tmp_path / "learner").iterdir()
    path.write_bytes(path.read_bytes() + b'{"n": 1, "en')
    journal.write(tmp_path, {"n": 2, "ended_us": NOON_US})
    assert [entry["n"] for entry in journal.read(tmp_path)] == [0, 2]


def test_a_week_is_kept(tmp_path: Path) -> None:
    for day in range(12):
        journal.write(tmp_path, {"n": day, "ended_us": NOON_US + day * DAY_US})
    assert [entry["n"] for entry in journal.read(tmp_path)] == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_hold_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns.beat(tmp_path, {})
    with turns.holding(tmp_path, "a rollback", 60):
        assert turns.held(tmp_path) == "a rollback"
    assert turns.held(tmp_path) is None
    turns.hold(tmp_path, "long ago", -1)
    assert turns.held(tmp_path) is None


def test_nobody_holds_a_learner_that_is_not_there(tmp_path: Path) -> None:
    with turns.holding(tmp_path, "a rollback", 60):
        assert turns.held(tmp_path) is None
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "beat.json").write_text("{torn")
    assert not turns.alive(tmp_path)
