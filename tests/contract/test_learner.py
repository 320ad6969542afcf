"""The resident learner on a small line: what it publishes, refuses, and gives way to."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import cycle, promote, records, train, turns
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, EnvironmentFault
from headrace.learner import Learner, Models
from headrace.learner.audit import Auditor
from headrace.learner.intake import Intake
from headrace.learner.service import run
from headrace.line import LineStore
from headrace.line.verify import verify
from headrace.model.delta import same_bits
from headrace.sample import Quarantine, head_tick
from tests.campaign import wait_for
from tests.contract.written_line import ROWS, Line, correct_five, opened

STEP = 2  # ticks of a chunk, 100 rows: as many as either gate wants


@cache
def models(declared: str) -> Models:
    """Made once for equal declarations: a learner takes over whatever state it finds."""
    return Models(LineSpec.model_validate_json(declared))


def learner(line: Line, step: int = STEP, auditor: Auditor | None = None) -> Learner:
    used = models(line.spec.model_dump_json())
    return Learner(line.settings, line.spec, auditor, ticks_a_step=step, models=used)


def run_out(learner: Learner) -> list[cycle.Cycle]:
    """Look until there is nothing left to take in."""
    ended, before = learner.look(), -1
    while learner.next_tick != before:
        before = learner.next_tick
        ended += learner.look()
    return ended


def outcomes(ended: list[cycle.Cycle]) -> list[tuple[str, tuple[int, int] | None]]:
    return [(step.outcome, step.interval) for step in ended]


def test_every_step_is_judged_on_rows_that_came_after_it(line: Line) -> None:
    line.tick(4, version="v000001")
    ended = run_out(learner(line))
    assert outcomes(ended) == [("promoted", (at, at + STEP)) for at in (34, 36, 38, 40)]
    assert all(step.kind == "learner" for step in ended)
    assert records.records(line.settings, line.spec)[-4:] == ended
    for step in ended:
        evidence = line.store.evidence(str(step.version))
        version = line.store.get(str(step.version))
        assert evidence is not None
        assert evidence["eval_from_tick"] == version.to_tick == evidence["train_to_tick"]
        assert evidence["rows"] == STEP * ROWS
        assert (version.kind, version.publisher) == ("delta", "learner")
    assert line.champion == str(ended[-1].version)
    pending = line.store.get(line.store.published()[-1])
    assert (pending.from_tick, pending.to_tick, pending.parent) == (42, 44, line.champion)
    assert line.store.verdict(pending.version) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "model"),
    [("delayed_feedback: esdfm", "ids: dynamic"), ("negative_rate: 0.3", "family: dcn")],
)
def test_its_versions_are_those_of_a_chain_of_incremental_trainings(
    line: Line, tmp_path: Path, label: str, model: str
) -> None:
    path = tmp_path / "copy" / "lines" / "tiny.yaml"
    declared = path.read_text(encoding="utf-8")
    declared = declared.replace("provisional_after: 10s}", f"provisional_after: 10s, {label}}}")
    path.write_text(declared.replace("model:\n", f"model:\n  {model}\n"), encoding="utf-8")
    line = opened(tmp_path / "copy")
    base = train.full(line.settings, line.spec, 34)
    line.store.advance(line.store.champion(), base, "promote", "test")
    correct_five(line, 36)
    line.tick(5)
    promoted = [step for step in run_out(learner(line)) if step.outcome == "promoted"]
    assert len(promoted) == 5
    states = [line.store.load(str(step.version))[1] for step in promoted]
    shutil.rmtree(line.home / "champion")
    line.store.advance(None, base, "promote", "the same again")
    for step, learned in zip(promoted, states, strict=True):
        assert step.interval is not None
        again = train.incremental(line.settings, line.spec, *step.interval)
        assert same_bits(line.store.load(again)[1], learned)
        line.store.advance(line.store.champion(), again, "promote", "test")
    assert all(checked.outcome == "sound" for checked in verify(line.store))


def test_a_chunk_that_fails_the_data_gate_is_quarantined_and_later_ones_go_on(line: Line) -> None:
    watching = learner(line)
    run_out(watching)
    line.tick(2, click=np.ones_like)
    line.tick(6)
    ended = run_out(watching)
    (refused,) = (step for step in ended if step.outcome == "rejected")
    assert (refused.stage, refused.interval, refused.version) == ("data", (40, 42), None)
    assert refused.reasons[0].startswith("label rate of a stretch of impressions")
    assert [(q["from"], q["to"]) for q in Quarantine(line.home).intervals()] == [(40, 42)]
    version = line.store.get(line.champion)
    assert (version.to_tick, line.store.get(str(version.parent)).excluded) == (46, [[40, 42]])


def test_the_times_of_all_rows_that_are_held_are_known_however_long_ago_they_came(
    line: Line,
) -> None:
    intake = Intake(line.settings, line.spec, 4 * STEP)
    intake.start_again(head_tick(line.home))
    intake._window_us = 1  # so that a chunk is older than the window when it is done
    line.tick(8 * STEP)
    for _ in range(2):
        chunk = intake.next()
        assert chunk is not None
        assert chunk.reasons == []
        times = sorted(set(chunk.samples["emitted_at"].cast(pa.int64()).to_pylist()))
        assert len(intake._busy_us) == len(times) == 4 * STEP  # one tick for each moment
        assert np.searchsorted(intake._busy_us, times).tolist() == list(range(4 * STEP))


def test_refused_ticks_are_no_pause_and_what_is_odd_but_accepted_speaks_against_no_later_chunk(
    line: Line,
) -> None:
    intake = Intake(line.settings, line.spec, STEP)
    intake.start_again(head_tick(line.home))
    line.tick(14, click=np.ones_like)  # longer than a negative's silence
    line.tick(2)
    chunks = [intake.next() for _ in range(8)]
    assert [chunk is not None and bool(chunk.reasons) for chunk in chunks] == [True] * 7 + [False]
    assert chunks[-1] is not None
    assert chunks[-1].to_evaluate.num_rows == 2 * ROWS
    assert chunks[0] is not None
    intake._recent.append((0, chunks[0].samples))  # as if nobody had seen that it is odd
    line.tick(2)
    sound = intake.next()
    assert sound is not None
    assert (sound.reasons, sound.window.num_rows) == ([], 2 * ROWS)
    line.tick(2, click=np.ones_like)
    refused = intake.next()
    assert refused is not None
    assert refused.reasons


def test_a_step_that_made_the_model_worse_is_quarantined_and_undone(line: Line) -> None:
    line.tick(2)
    line.tick(8, click=np.logical_not)  # a rate that the data gate takes
    line.tick(24)
    ended = run_out(learner(line, step=8))
    assert outcomes(ended) == [
        ("rejected", (34, 42)),  # its judges were the flipped rows: nobody is blamed
        ("promoted", (34, 42)),
        ("rejected", (42, 50)),
        ("promoted", (42, 58)),
        ("promoted", (58, 66)),
    ]
    assert ended[0].reasons[0].startswith("calibration_within: ")
    assert any(r.startswith("logloss_not_worse: +") for r in ended[2].reasons)
    assert [(q["from"], q["to"]) for q in Quarantine(line.home).intervals()] == [(42, 50)]
    assert [v.excluded for v in lineage(line)[:2]] == [[], [[42, 50]]]


def lineage(line: Line) -> list[Any]:
    version = line.store.get(line.champion)
    found = [version]
    while version.parent is not None:
        version = line.store.get(version.parent)
        found.append(version)
    return found


def test_an_update_of_an_unusual_size_is_refused(line: Line) -> None:
    line.tick(18)
    watching = learner(line)
    run_out(watching)
    standing = watching._standing
    standing._norms.extend([1e-9] * 64)
    line.tick(4)
    ended = run_out(watching)
    assert ended[0].reasons[0].startswith("update_norm_usual: ")
    assert Quarantine(line.home).intervals() != []


def test_a_parity_mismatch_refuses_but_blames_nothing_and_the_next_rows_are_asked(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = learner(line)
    run_out(watching)
    before = line.champion
    newest = watching._auditor._newest
    assert newest is not None
    broken = replace(newest, proof=replace(newest.proof, mismatches=1))
    monkeypatch.setattr(watching._auditor, "_newest", broken)
    line.tick(2)
    (refused,) = run_out(watching)
    assert refused.reasons[0].startswith("parity_holds: 1 mismatches")
    assert (line.champion, Quarantine(line.home).intervals()) == (before, [])
    monkeypatch.setattr(watching._auditor, "_newest", newest)
    line.tick(2)
    assert outcomes(run_out(watching)) == [("promoted", (38, 40)), ("promoted", (40, 42))]


def test_without_an_audit_or_with_an_old_one_nothing_is_promoted(line: Line) -> None:
    watching = learner(line)
    watching._auditor._due = float("inf")
    assert run_out(watching) == []
    assert line.champion == "v000001"


def test_another_writer_wins_and_the_learner_goes_on_from_it(line: Line) -> None:
    watching = learner(line)
    run_out(watching)
    pending = line.store.published()[-1]
    other = train.incremental(line.settings, line.spec, 38, 40)
    line.store.advance(line.store.champion(), other, "promote", "a cycle")
    line.tick(4)
    ended = run_out(watching)
    assert (ended[0].version, ended[0].stage) == (pending, "promote")
    assert ended[0].reasons == (f"champion_unmoved: {other} is champion (promote: a cycle)",)
    assert outcomes(ended[1:]) == [("promoted", (40, 42))]
    assert line.store.get(line.champion).parent == other


def test_a_swap_that_is_lost_at_the_last_moment_is_told(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = learner(line)
    run_out(watching)
    line.tick(2)
    advance = LineStore.advance

    def overtaken(store: LineStore, *given: Any) -> Any:
        monkeypatch.setattr(LineStore, "advance", advance)
        other = train.incremental(line.settings, line.spec, 38, 40)
        advance(line.store, line.store.champion(), other, "force", "faster")
        return advance(store, *given)

    monkeypatch.setattr(LineStore, "advance", overtaken)
    (lost,) = watching.look()
    assert lost.outcome == "rejected"
    assert "(force: faster)" in lost.reasons[0]
    line.tick(2)
    assert outcomes(run_out(watching)) == [("promoted", (40, 42))]


def test_what_a_rollback_left_stays_out(line: Line) -> None:
    watching = learner(line)
    run_out(watching)
    back = promote.roll_back(line.settings, line.spec, "v000001", "drill")
    line.tick(4)
    ended = run_out(watching)
    assert ended[0].reasons == ("champion_unmoved: v000001 is champion (rollback: drill)",)
    assert back.version == "v000001"
    version = line.store.get(line.champion)
    first = next(v for v in lineage(line) if v.parent == "v000001")
    assert (first.from_tick, first.excluded) == (34, [[34, 38]])
    assert version.to_tick == 42


def test_while_it_is_asked_to_hold_the_champion_stays(line: Line) -> None:
    turns.hold(line.home, "a full retrain is compared", 60)
    watching = learner(line)
    assert run_out(watching) == []
    turns.release(line.home)
    line.tick(2)
    assert outcomes(run_out(watching))[0] == ("promoted", (34, 36))


class Killed(BaseException):
    """Where a process would have been killed."""


WRITES = ("replace", "create")


def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Raise `Killed` instead of the n-th write to the line store; the undo is returned."""
    from headrace.sealed import SealedFiles

    left = [writes]
    for name in WRITES:
        real = getattr(SealedFiles, name)

        def write(files: Any, *given: Any, real: Any = real, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(files, *given, **named)

        monkeypatch.setattr(SealedFiles, name, write)
    return monkeypatch.undo


@pytest.mark.slow
def test_killed_before_any_write_it_ends_in_the_same_states(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.tick(2)
    line.tick(2, click=np.ones_like)
    line.tick(4)
    calm = Line(line.settings, line.spec)
    shutil.copytree(tmp_path / "copy", tmp_path / "stormy")
    stormy = opened(tmp_path / "stormy")
    run_out(learner(calm))
    dice, auditor = random.Random(3), Auditor(stormy.settings, stormy.spec, None)
    for _ in range(200):
        undo = killed_after(dice.randint(1, 12), monkeypatch)
        try:
            run_out(learner(stormy, auditor=auditor))
        except Killed:
            continue
        finally:
            undo()
        break
    else:
        raise AssertionError("it never came through")
    assert told(stormy) == told(calm)
    assert same_bits(stormy.store.load(stormy.champion)[1], calm.store.load(calm.champion)[1])
    assert [(q["from"], q["to"]) for q in Quarantine(stormy.home).intervals()] == [(42, 44)]


def told(line: Line) -> list[tuple[str, int, int]]:
    """State and interval of every champion, in order."""
    versions = [line.store.get(champion.version) for champion in line.store.history()]
    return [(v.fingerprint, v.from_tick, v.to_tick) for v in versions]


def test_a_cycle_leaves_the_samples_to_a_learner_that_is_alive(line: Line) -> None:
    line.tick(2)
    turns.beat(line.home, {"champion": "v000001"})
    assert cycle.plan(line.settings, line.spec) is None
    ended = line.begin()
    assert (ended.outcome, ended.reasons) == ("idle", ("the learner takes the new samples",))
    turns.silence(line.home)
    assert cycle.plan(line.settings, line.spec) is not None


def test_two_learners_of_a_line_do_not_run_beside_each_other(line: Line) -> None:
    (line.home / "learner").mkdir()
    stop = threading.Event()
    first = threading.Thread(target=run, args=(line.settings, line.spec, stop))
    first.start()
    try:
        wait_for(lambda: turns.alive(line.home))
        with pytest.raises(EnvironmentFault, match="another learner"):
            run(line.settings, line.spec, threading.Event())
    finally:
        stop.set()
        first.join()
    assert turns.heard(line.home) is None


def test_a_swap_that_nobody_won_is_an_error(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = learner(line)
    run_out(watching)
    line.tick(2)

    def lost(*_given: Any) -> Any:
        raise ConflictError("the store is odd")

    monkeypatch.setattr(LineStore, "advance", lost)
    with pytest.raises(ConflictError, match="odd"):
        run_out(watching)
