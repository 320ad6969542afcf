"""The guard on a small line: a bad champion is rolled back and told of, a good one stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import alarms, cli, evaluate, guard, train
from headrace.line import Champion
from headrace.quarantine import Quarantine
from headrace.watch import Live
from tests.contract import served_line
from tests.contract import written_line as written
from tests.contract.served_line import ServedLine

NOTIFIER = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root, start_us = tmp_path_factory.mktemp("guarded"), written.START_US
    served_line.begin(root)
    yield root
    written.START_US = start_us


@pytest.fixture
def line(begun: Path, tmp_path: Path) -> ServedLine:
    (tmp_path / "notify.py").write_text(NOTIFIER)
    command = f"{sys.executable} {tmp_path / 'notify.py'} {tmp_path / 'told.json'}"
    return served_line.copied(begun, tmp_path, HEADRACE_ALARM_COMMAND=command)


def look(line: ServedLine) -> guard.Pass:
    return guard.Guard(line.settings, line.spec).once()


def test_a_bad_version_promoted_by_force_is_rolled_back_recorded_and_told(
    line: ServedLine, tmp_path: Path
) -> None:
    bad = line.train(30, labels=np.logical_not)
    line.crown(bad, "force")
    line.tick(6, version=bad)
    watching = guard.Guard(line.settings, line.spec)
    seen = watching.once()
    assert (seen.action, seen.champion, seen.rolled_back_to) == ("rollback", bad, "v000001")
    champion = line.store.champion()
    assert champion is not None
    assert (champion.version, champion.action) == ("v000001", "rollback")
    assert champion.reason.startswith("guard: calibrated:")
    assert "no_worse_than_previous: log loss +" in champion.reason
    (alarm,) = alarms.alarms(line.settings, "tiny")
    assert (alarm["kind"], alarm["action"], alarm["champion"]) == ("guard", "rollback", bad)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["watched"]["breaches"] == alarm["watched"]["breaches"]
    assert watching.once().action == "none"  # the version that is back has served nothing yet
    guard.write(line.settings, "tiny", seen)
    metrics = (line.home / "guard" / "guard.prom").read_text()
    assert 'headrace_guard_rollbacks{line="tiny"} 1.0' in metrics
    assert 'headrace_guard_alarms{line="tiny"} 1.0' in metrics


def test_a_champion_that_keeps_its_promise_is_left_alone(line: ServedLine) -> None:
    good = line.train(30, epochs=3)
    line.tick(4, version="v000001")
    evaluate.evaluate(line.settings, line.spec, good, wait_s=0)
    line.crown(good)
    watching = guard.Guard(line.settings, line.spec)
    for _ in range(8):
        line.tick(2, version=good)
        seen = watching.once()
        assert (seen.action, seen.watched and seen.watched.breaches) == ("none", ())
    assert seen.watched is not None
    assert seen.watched.requests == 16 * 50
    assert seen.watched.score_shift is not None
    assert alarms.alarms(line.settings, "tiny") == []


def test_a_champion_is_not_blamed_for_answers_in_which_others_stood_in(line: ServedLine) -> None:
    bad = line.train(30, labels=np.logical_not)
    line.crown(bad, "force")
    line.fallback = "defaults"
    line.tick(6, version=bad)
    seen = look(line)
    assert (seen.action, seen.watched and seen.watched.requests) == ("none", 0)
    assert seen.watched is not None
    assert seen.watched.score_shift is None


def test_a_champion_that_never_answers_is_told_of_once(line: ServedLine) -> None:
    line.crown(line.train(30), "force")
    line.fallback = "previous"
    line.tick(6, version="v000001")
    watching = guard.Guard(line.settings, line.spec)
    for _ in range(2):
        assert watching.once().action == "alarm"
    (alarm,) = alarms.alarms(line.settings, "tiny")
    (breach,) = alarm["watched"]["breaches"]
    assert breach.startswith("champion_answers: others stood in for v000002 in 100%")


def test_what_a_bad_increment_learned_goes_to_quarantine(line: ServedLine) -> None:
    line.tick(20, click=np.logical_not, version="v000001")
    bad = train.incremental(line.settings, line.spec, 30, 50)
    line.crown(bad, "force")
    line.tick(12, version=bad)
    assert look(line).rolled_back_to == "v000001"
    assert [(q["from"], q["to"]) for q in Quarantine(line.home).intervals()] == [(30, 50)]


def test_a_breach_that_no_rollback_cures_is_told_once_and_nothing_moves(line: ServedLine) -> None:
    line.crown(line.train(30, epochs=3))
    watching = guard.Guard(line.settings, line.spec)
    line.tick(8, click=np.ones_like, version="v000002")  # the world: all that is shown is clicked
    worse = line.store.champion()
    seen = watching.once()
    assert any(breach.startswith("calibrated") for breach in seen.watched.breaches)
    assert seen.action == "alarm"
    assert "would not help" in seen.why
    watching.once()
    assert len(alarms.alarms(line.settings, "tiny")) == 1
    assert line.store.champion() == worse


def test_a_champion_that_moved_meanwhile_is_not_rolled_back(
    line: ServedLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = line.train(30, labels=np.logical_not)
    line.crown(bad, "force")
    line.tick(6, version=bad)
    good = line.train(30, epochs=3)
    watching = guard.Guard(line.settings, line.spec)
    look_at = watching._live

    def meanwhile(champion: Champion, since_us: int) -> Live:
        line.crown(good)
        return look_at(champion, since_us)

    monkeypatch.setattr(watching, "_live", meanwhile)
    seen = watching.once()
    assert (seen.action, seen.champion, seen.rolled_back_to) == ("alarm", bad, None)
    champion = line.store.champion()
    assert champion is not None
    assert champion.version == good


def test_a_notifier_that_fails_is_recorded_and_loses_no_alarm(
    line: ServedLine, tmp_path: Path
) -> None:
    (tmp_path / "notify.py").write_text("raise SystemExit('no network')")
    path = alarms.raise_alarm(line.settings, "tiny", "guard", {"why": "test"})
    (alarm,) = alarms.alarms(line.settings, "tiny")
    assert "exit 1: no network" in alarm["not_sent"]
    assert path.name == f"{alarm['at_us']}.json"


def test_the_verb_tells_people_and_machines(
    line: ServedLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(line.settings.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(line.settings.lines_dir))
    line.tick(3, version="v000001")
    for arguments in (["--json"], []):
        monkeypatch.setattr(
            sys, "argv", ["headrace", "guard", "--line", "tiny", "--once", *arguments]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        told = capsys.readouterr().out
        if arguments:
            assert json.loads(told)["watched"]["rows"] == 150
        else:
            assert "nothing to do" in told
    assert json.loads(guard.beat(line.settings, "tiny").read_text())["champion"] == "v000001"
