"""A race on a small line: judged on the same rows, promoted and dropped with reasons."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import cli, contest, train
from headrace.alarms import alarms
from headrace.contest import scorecard
from headrace.errors import ConflictError, DeclarationError, GateRejected, InputError
from headrace.line.races import Races
from headrace.race.arms import Rules
from tests.contract import served_line
from tests.contract import written_line as written
from tests.contract.served_line import ServedLine

RULES = Rules(min_requests=200)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """v000001 is champion, v000002 learned flipped labels, v000003 is as good as the champion."""
    root, start_us = tmp_path_factory.mktemp("raced"), written.START_US
    served_line.begin(root)
    line = served_line.opened(root)
    line.train(30, labels=np.logical_not)
    line.train(30, epochs=3)
    yield root
    written.START_US = start_us


@pytest.fixture
def line(begun: Path, tmp_path: Path) -> ServedLine:
    return served_line.copied(begun, tmp_path)


def start(line: ServedLine, *arms: dict, rules: Rules | None = RULES) -> contest.Contest:
    found = contest.Contest(line.settings, line.spec)
    found.start([contest.make_arm(**({"mode": "shadow"} | arm)) for arm in arms], None, rules, "t")
    return found


def races(line: ServedLine) -> Races:
    return Races(line.store)


@pytest.mark.slow
def test_a_better_challenger_is_promoted_and_the_race_ends_with_the_reason(line):
    line.crown("v000002", "force")
    found = start(line, {"name": "good", "version": "v000001"})
    line.tick(8, version="v000002")
    look = found.once()
    assert look is not None
    assert look.rows == 6 * 50  # the window of the last two ticks' rows is not closed
    assert look.open_rows == 2 * 50
    seen = races(line).seen(look.race.name)
    assert seen is not None
    assert (seen["rows"], seen["arms"]["good"]["decision"]) == (300, "promote")
    assert seen["arms"]["good"]["low"] == look.standings["good"].gain.low
    assert seen["earned"]["good"]["rate"] is None  # it answered nothing: NaN is no JSON
    standing = look.standings["good"]
    assert standing.logloss < standing.champion_logloss
    champion = line.store.champion()
    assert champion is not None
    assert (champion.version, champion.action, champion.previous) == ("v000001", "race", "v000002")
    assert champion.reason.startswith("better by more than 0: log loss 0.")
    over = races(line).newest()
    assert over is not None
    assert (over.race, over.action, over.reason) == (None, "promote", champion.reason)
    assert found.once() is None


def test_a_worse_challenger_is_dropped_and_the_other_goes_on(line):
    found = start(
        line, {"name": "bad", "version": "v000002"}, {"name": "same", "version": "v000001"}
    )
    line.tick(8, version="v000001")
    found.once()
    newest = races(line).newest()
    assert newest is not None
    assert newest.action == "drop"
    assert newest.reason.startswith("worse by more than 0")
    assert newest.race is not None
    assert [arm.name for arm in newest.race.arms] == ["same"]
    assert line.champion == "v000001"


def test_scores_are_those_of_the_version_held_when_the_row_was_served_and_kept(line, monkeypatch):
    found = start(line, {"name": "a", "version": "v000003"}, rules=Rules(min_requests=10_000))
    line.tick(3, version="v000001")
    first = found.look()
    assert (first.rows, first.standings["a"].rows) == (50, 50)
    kept = {path: path.stat().st_mtime_ns for path in line.home.glob("race/*/*.parquet")}
    line.tick(3, version="v000001")
    again = contest.Contest(line.settings, line.spec).look()  # another process
    assert again.rows == 4 * 50
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    monkeypatch.setattr(scorecard, "MOST_FILES", 2)
    line.tick(1, version="v000001")
    joined = contest.Contest(line.settings, line.spec)
    assert joined.look().standings["a"].rows == 5 * 50
    assert len(list(line.home.glob("race/*/*.parquet"))) == 1
    assert (
        joined.look().standings["a"]
        == contest.Contest(line.settings, line.spec).look().standings["a"]
    )
    rows = train.window_samples(line.settings, line.spec, 30, 34).samples
    own = line.score(
        "v000003", {n: rows[n].to_numpy(zero_copy_only=False) for n in rows.column_names}
    )
    losses = -np.where(rows["label"].to_numpy() > 0, np.log(own), np.log1p(-own))
    assert again.standings["a"].logloss == pytest.approx(losses.mean())


def test_each_arm_earns_what_its_rows_and_propensities_say(line):
    arm = {"name": "a", "version": "v000003", "mode": "thompson"}
    found = start(line, arm, rules=Rules(min_requests=10_000))
    line.tick(2, version="v000001")
    line.split = "a"
    line.tick(4, version="v000001")
    look = found.act(found.look())
    rows = train.window_samples(line.settings, line.spec, 30, 34).samples.slice(0, 4 * 50)
    clicked, drawn = rows["label"].to_numpy(), np.array(rows["arm"].to_pylist())
    weight = 1 / rows["propensity"].to_numpy()
    for name in ("champion", "a"):
        mine = drawn == name
        assert look.clicks[name] == (clicked[mine].sum(), (1 - clicked[mine]).sum())
        rate = (weight * clicked * mine).sum() / (weight * mine).sum()
        earned = look.earned[name]
        assert earned.snips.value == pytest.approx(rate)
        assert earned.ips.value == pytest.approx((weight * clicked * mine).mean())
        assert earned.doubly_robust.error < earned.ips.error
        for way in (earned.snips, earned.ips, earned.doubly_robust):
            assert way.low < way.value < way.high
    assert races(line).tally(look.race.name) == look.clicks
    line.fallback = "previous"
    line.tick(4, version="v000001")
    line.fallback = None
    line.tick(2, version="v000001")
    later = found.look()  # all arms are judged by what stood in rows, none earns by them
    assert later.rows == look.rows + 6 * 50
    assert sum(map(sum, later.clicks.values())) == look.rows + 2 * 50
    assert later.earned["a"].snips.rows == look.rows + 2 * 50


def test_another_version_under_an_arms_name_starts_from_nothing(line):
    found = start(line, {"name": "a", "version": "v000002"}, rules=Rules(min_requests=10_000))
    line.tick(4, version="v000001")
    assert found.look().standings["a"].rows == 100
    written.START_US += 200_000_000_000  # rows from now on are served after the change
    try:
        changed = start(line, {"name": "a", "version": "v000003"}, rules=None)
        states = races(line).states(found.look().race.name)
        assert [state.action for state in states] == ["start", "change"]
        assert changed.look().race.rules.min_requests == 10_000  # rules stay
    finally:
        written.START_US -= 200_000_000_000
    assert contest.entry.entered_us(states, "a") == states[1].at_us


def test_an_arm_that_follows_learns_the_champions_samples_whatever_its_share(line):
    found = start(line, {"name": "twin", "version": "v000001", "follow": True})
    line.tick(6, version="v000001")
    new = train.incremental(line.settings, line.spec, 30, 34)
    line.crown(new)
    (version,) = found.freshen()
    twin, champion = line.store.get(version), line.store.get(new)
    assert (twin.parent, twin.to_tick) == ("v000001", 34)
    assert twin.fingerprint == champion.fingerprint  # the same samples, the same bytes
    newest = races(line).newest()
    assert newest is not None
    assert (newest.action, newest.reason) == ("advance", f"to tick 34: twin is {version}")
    assert found.freshen() == []


def test_an_arm_of_other_hyper_parameters_races_but_waits_for_its_declaration(line):
    arm = contest.make_arm(name="fast", version="v000001", mode="shadow", model={"ftrl_alpha": 0.3})
    with pytest.raises(DeclarationError, match="was trained by"):
        contest.Contest(line.settings, line.spec).start([arm], None, None, "t")
    spec = contest.variant(line.spec, arm)
    own = ServedLine(line.settings, spec).train(30)
    line.crown("v000002", "force")
    found = start(line, {"name": "fast", "version": own, "model": {"ftrl_alpha": 0.3}})
    line.tick(8, version="v000002")
    found.once()
    found.once()
    assert line.champion == "v000002"
    (alarm,) = alarms(line.settings, "tiny")
    assert (alarm["kind"], alarm["arm"], alarm["decision"]) == ("race", "fast", "promote")
    assert "was trained by" in alarm["problem"]


def test_what_cannot_race_is_refused_with_the_reason(line):
    found = contest.Contest(line.settings, line.spec)
    with pytest.raises(InputError, match="nothing races"):
        found.look()
    with pytest.raises(InputError, match="does not exist"):
        start(line, {"name": "a", "version": "v000099"})
    with pytest.raises(InputError, match="arm 'a': a split needs a share"):
        contest.make_arm(name="a", version="v000001", mode="split")
    with pytest.raises(InputError, match="arm 'a': nonsense: Extra inputs"):
        start(line, {"name": "a", "version": "v000001", "model": {"nonsense": 1}})
    with pytest.raises(InputError, match="'colour' is no column"):
        arm = contest.make_arm(name="a", version="v000003", mode="shadow")
        found.start([arm], "colour", None, "t")
    start(line, {"name": "a", "version": "v000003"})
    with pytest.raises(InputError, match="no arm 'b' races; known: a"):
        found.promote("b", "t")


def test_whoever_changes_a_race_from_an_old_state_is_told(line):
    start(line, {"name": "a", "version": "v000003"})
    first = races(line).newest()
    start(line, {"name": "b", "version": "v000003"})
    with pytest.raises(ConflictError, match="read the race again"):
        races(line).append(first, None, "stop", "late")


def test_an_undecided_race_promotes_by_hand_with_force_and_is_pinned_for_retention(line):
    found = start(line, {"name": "a", "version": "v000003"})
    line.tick(3, version="v000001")
    assert found.look().decisions[0].action == "wait"
    with pytest.raises(GateRejected, match="50 of 200 requests"):
        run("promote", "--arm", "a", line=line)
    run("promote", "--arm", "a", "--force", line=line)
    assert line.champion == "v000003"
    assert races(line).running() is None


def test_the_verbs_tell_people_and_machines(line, capsys):
    run("status", line=line)
    assert "nothing races" in capsys.readouterr().out
    run("start", "--arm", "a", "--version", "v000003", "--mode", "split", "--share", "0.2",
        "--rule", "alpha=0.01", "--json", line=line)  # fmt: skip
    begun = json.loads(capsys.readouterr().out)
    assert begun["race"]["arms"][0]["share"] == 0.2
    assert begun["race"]["slots"] == {"a": [[0, 2000]]}
    assert begun["race"]["rules"]["alpha"] == 0.01
    run("start", "--arm", "b", "--version", "v000002", line=line)
    assert "racing a = v000003 (split 20%), b = v000002 (shadow)" in capsys.readouterr().out
    line.tick(3, version="v000001")
    run("status", "--json", line=line)
    status = json.loads(capsys.readouterr().out)
    assert (status["rows"], status["open_rows"]) == (50, 100)
    assert {d["arm"]: d["action"] for d in status["decisions"]} == {"a": "wait", "b": "wait"}
    run("status", line=line)
    assert "b: wait: 50 of 300 requests" in capsys.readouterr().out
    run("run", "--once", line=line)
    assert json.loads(capsys.readouterr().out)["generation"] == 2
    run("stop", "--arm", "b", line=line)
    run("stop", line=line)
    assert "the race is over (by hand)" in capsys.readouterr().out
    with pytest.raises(InputError, match="--rule beta"):
        run("start", "--arm", "a", "--version", "v000003", "--rule", "beta=1", line=line)
    with pytest.raises(DeclarationError, match="is not key=value"):
        run("start", "--arm", "a", "--version", "v000003", "--set", "ftrl_alpha", line=line)


def run(*arguments: str, line: ServedLine) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(line.settings.home))
        patch.setenv("HEADRACE_LINES_DIR", str(line.settings.lines_dir))
        patch.setattr(sys, "argv", ["headrace"])
        cli.app(["race", *arguments, "--line", "tiny"], standalone_mode=False)


def test_the_conductor_says_that_it_is_alive_and_what_failed(line, monkeypatch):
    start(line, {"name": "a", "version": "v000003"}, rules=Rules(min_requests=10_000))
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda _seconds: stop.set())
    contest.run(line.settings, line.spec, stop)
    told = json.loads(contest.beat(line.settings, "tiny").read_text())
    assert (told["race"].startswith("tiny-"), told["problem"]) == (True, None)
    (line.home / "versions" / "v000003" / "manifest.json").write_text("{}")
    stop.clear()
    line.tick(1, version="v000001")
    contest.run(line.settings, line.spec, stop)
    assert "manifest" in json.loads(contest.beat(line.settings, "tiny").read_text())["problem"]
