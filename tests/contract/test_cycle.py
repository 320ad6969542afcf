"""The cycle on a small line: what is promoted, rejected, quarantined, and always recorded."""

from __future__ import annotations

import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from headrace import cycle, train, turns
from headrace.cycle import Interval
from headrace.errors import ConflictError, InputError
from headrace.sample import Quarantine
from tests.contract.written_line import ROWS, START_US, Line


def test_a_full_training_beats_the_prior_on_ticks_it_held_out(line: Line) -> None:
    version = line.store.get("v000001")
    assert (version.from_tick, version.to_tick, version.parent) == (0, 34, None)
    evidence = line.store.evidence("v000001")
    assert evidence is not None
    assert evidence["champion"] == "prior"
    assert (evidence["eval_from_tick"], evidence["eval_to_tick"]) == (34, 40)
    assert evidence["rows"] == 6 * ROWS
    assert evidence["candidate_logloss"] < evidence["champion_logloss"] - 0.05
    verdict = line.store.verdict("v000001")
    assert verdict is not None
    assert verdict["passed"] is True
    assert line.recorded().outcome == "promoted"


def test_the_next_window_is_learned_from_the_champion_and_promoted(line: Line) -> None:
    line.tick(3, version="v000001")
    trained = line.learn()
    assert trained.interval == (34, 43)
    line.tick(4, version="v000001")
    ended = line.finish(trained)
    assert (ended.outcome, ended.stage, ended.reasons) == ("promoted", "promote", ())
    version = line.store.get("v000002")
    assert (version.parent, version.rows) == ("v000001", 9 * ROWS)
    assert version.watermark_us == START_US + 42 * 1_000_000
    evidence = line.store.evidence("v000002")
    assert evidence is not None
    assert (evidence["parity_rows"], evidence["parity_mismatches"]) == (4 * ROWS, 0)
    assert line.champion == "v000002"
    assert line.recorded() == ended
    assert cycle.find_record(line.settings, line.spec, ended.run) == ended


def test_a_window_is_learned_in_the_same_bytes_again(line: Line) -> None:
    first = train.incremental(line.settings, line.spec, 34, 40)
    again = train.incremental(line.settings, line.spec, 34, 40)
    assert line.store.get(first).fingerprint == line.store.get(again).fingerprint


def test_too_few_new_rows_end_the_cycle_idle(line: Line) -> None:
    promoted = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), promoted, "promote", "test")
    line.tick(1)
    assert cycle.plan(line.settings, line.spec) is None
    ended = line.begin()
    assert (ended.outcome, ended.version) == ("idle", None)
    line.tick(1)
    assert cycle.plan(line.settings, line.spec) == Interval(40, 42)


def test_a_window_that_fails_the_data_gate_trains_nothing_and_is_skipped_later(line: Line) -> None:
    line.tick(30, click=np.ones_like)
    ended = line.begin()
    assert (ended.outcome, ended.stage, ended.version) == ("rejected", "data", None)
    assert ended.reasons[0].startswith("label rate over impressions is 0.")
    assert [v.version for v in line.store.versions()] == ["v000001"]
    assert [(q["from"], q["to"]) for q in Quarantine(line.home).intervals()] == [(34, 70)]
    assert cycle.plan(line.settings, line.spec) is None
    line.tick(3)
    trained = line.learn()
    assert trained.interval == (34, 73)
    line.tick(4)
    assert line.finish(trained).outcome == "promoted"
    version = line.store.get("v000002")
    assert (version.rows, version.excluded) == (3 * ROWS, [[34, 70]])


def test_flipped_labels_are_rejected_by_the_model_gate_and_quarantined(line: Line) -> None:
    line.tick(15, click=np.logical_not)  # their rate is above 0.5, within the declared bounds
    trained = line.learn()
    line.tick(6)
    ended = line.finish(trained)
    assert (ended.outcome, ended.stage) == ("rejected", "model")
    assert any(reason.startswith("logloss_not_worse: +") for reason in ended.reasons)
    assert line.champion == "v000001"
    assert [(q["from"], q["to"]) for q in Quarantine(line.home).intervals()] == [(34, 55)]
    verdict = line.store.verdict("v000002")
    assert verdict is not None
    assert verdict["passed"] is False


def test_labels_that_contradict_the_served_scores_freeze_the_line(line: Line) -> None:
    gate = line.spec.gates.data.model_copy(update={"max_misranked": 0.5})
    gates = line.spec.gates.model_copy(update={"data": gate})
    line.spec = line.spec.model_copy(update={"gates": gates})
    line.scores = (0.6, 0.05)
    line.tick(15, version="v000001", click=np.logical_not)
    ended = line.begin()
    assert (ended.outcome, ended.stage) == ("rejected", "data")
    assert turns.frozen(line.home) in ended.reasons
    line.tick(15, version="v000001")
    assert cycle.plan(line.settings, line.spec) is None
    turns.thaw(line.home)
    assert cycle.plan(line.settings, line.spec) == Interval(34, 70)


def test_without_later_rows_the_candidate_is_rejected_but_its_window_kept(line: Line) -> None:
    ended = line.finish(line.learn())
    assert ended.outcome == "rejected"
    assert any(r.startswith("enough_rows: 0 later rows") for r in ended.reasons)
    assert Quarantine(line.home).intervals() == []
    assert cycle.plan(line.settings, line.spec) == Interval(34, 40)


@pytest.mark.slow
def test_a_cycle_with_its_versions_on_s3_leaves_none_here(line: Line, bucket: str) -> None:
    fs, path = fsspec.core.url_to_fs(f"{bucket}/lines/tiny")
    for folder in ("versions", "champion"):
        fs.put(str(line.home / folder), f"{path}/{folder}", recursive=True)
        shutil.rmtree(line.home / folder)
    there = Line(replace(line.settings, line_store=f"{bucket}/lines"), line.spec)
    trained = there.learn()
    there.tick(4)
    ended = there.finish(trained)
    assert (ended.outcome, ended.reasons) == ("promoted", ())
    assert there.champion == "v000002"
    assert fs.exists(f"{path}/versions/v000002/manifest.json")
    assert not (line.home / "versions").exists()


def test_a_window_planned_before_the_champion_moved_is_not_learned(line: Line) -> None:
    with pytest.raises(ConflictError, match="the line moved on"):
        train.incremental(line.settings, line.spec, 30, 40)


def test_an_error_is_recorded_as_a_failed_cycle_and_raised(line: Line) -> None:
    (line.home / "samples" / "b=00000036.parquet").write_bytes(b"torn")
    with pytest.raises(pa.ArrowInvalid):
        cycle.run(line.settings, line.spec)
    recorded = line.recorded()
    assert (recorded.outcome, recorded.stage) == ("failed", "data")
    assert recorded.reasons[0].startswith("ArrowInvalid: ")


def test_a_retry_replaces_the_record_of_the_failed_attempt(line: Line) -> None:
    began = cycle.started(cycle.new_run(), "incremental")
    cycle.record(line.settings, line.spec, replace(began, outcome="failed"))
    cycle.record(line.settings, line.spec, replace(began, outcome="promoted", version="v000009"))
    found = cycle.find_record(line.settings, line.spec, began.run)
    assert found is not None
    assert found.outcome == "promoted"
    assert len(cycle.records(line.settings, line.spec)) == 2


def test_a_full_retrain_learns_all_and_waits_for_rows_that_no_champion_saw(line: Line) -> None:
    promoted = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), promoted, "promote", "test")
    assert cycle.plan_full(line.settings, line.spec) == Interval(0, 40)
    line.tick(2)
    assert cycle.plan_full(line.settings, line.spec) == Interval(0, 40)
    line.tick(1, click=np.ones_like)
    Quarantine(line.home).add(42, 43, ["test"])
    ended = cycle.run(line.settings, line.spec, "full", wait_s=0)
    assert ended.outcome == "promoted"
    evidence = line.store.evidence(str(ended.version))
    assert evidence is not None
    assert (evidence["champion"], evidence["rows"]) == (promoted, 2 * ROWS)


def test_without_a_champion_an_incremental_cycle_says_what_to_do(line: Line) -> None:
    shutil.rmtree(line.home / "champion")
    with pytest.raises(InputError, match="run full_train first"):
        cycle.plan(line.settings, line.spec)
