"""A replay predicts before it learns, learns only what was known, and loses no record."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from headrace import cli
from headrace.errors import InputError
from headrace.replay import stream as replay_module
from headrace.replay.learning import GatedLearner, window_reasons
from headrace.replay.results import read, render
from headrace.replay.scoreboard import comparisons, explanation
from headrace.replay.stream import replay
from headrace.results import write
from headrace.windows import WindowState
from tests.contract.turning_world import DAYS, START, declare, impressions, save, without, world


@pytest.fixture(scope="module", autouse=True)
def one_suite_check_a_replay() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "_SUITE_CHECKS", 1)
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return replay(declare(), save(tmp_path_factory.mktemp("toy"), world()))


def test_the_fresher_policy_wins_where_the_world_turns(result: dict[str, Any]) -> None:
    loss = {name: policy["logloss"] for name, policy in result["policies"].items()}
    assert loss["fresh"] < loss["daily"]
    assert result["policies"]["fresh"]["auc"] > 0.6
    fresh = result["comparisons"][0]
    assert fresh["holds"]
    assert fresh["low"] > 0


def test_all_rows_are_scored_by_all_policies_and_accounted_for(result: dict[str, Any]) -> None:
    counts = result["counts"]
    assert result["rows"] == counts["scored"] == counts["impressions"] == 300 * DAYS
    assert (counts["unaccounted"], counts["pending"], counts["without_label"]) == (0, 0, 0)
    for policy in result["policies"].values():
        assert sum(day["rows"] for day in policy["by_day"]) == result["rows"]
        assert len(policy["by_day"]) == DAYS
    assert result["features"]["rate"] == {"missing_share": 0.0}
    gates = result["training"]["gates"]["fresh"]
    assert gates["suite_checks"] > 0
    assert gates["suite_disagreements"] == 0


def test_every_streamed_vector_equals_a_batch_computation(result: dict[str, Any]) -> None:
    nothing = {"mismatches": 0, "by_feature": {}, "first": []}
    assert result["parity"] == {"rows": 300 * DAYS, **nothing}


class Ahead(WindowState):
    """Windows that know the next hour."""

    def values(self, keys: pa.Table, at_us: Any, view: str | None = None) -> pa.Table:
        return super().values(keys, at_us + 3_600_000_000, view)


def test_a_stream_that_looks_ahead_is_found_and_ends_the_verb_with_6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay_module, "WindowState", Ahead)
    line, target = tmp_path / "toy.yaml", tmp_path / "toy.json"
    line.write_text(yaml.safe_dump(declare().model_dump(mode="json", exclude_unset=True)))
    save(tmp_path, world(60))
    options = ["--line", str(line), "--data", str(tmp_path), "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["headrace", "replay", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 6
    found = json.loads(target.read_text(encoding="utf-8"))["parity"]
    assert found["rows"] == 60 * DAYS
    assert set(found["by_feature"]) == {"n", "h", "rate"}
    assert found["mismatches"] == sum(found["by_feature"].values())
    one = found["first"][0]
    assert one["feature"] == "n"
    assert one["streamed"] > one["batch"]
    written = capsys.readouterr()
    assert f"360 vectors computed again in batch, {found['mismatches']} values" in written.err


def test_frozen_is_daily_until_the_freeze_and_daily_starts_untrained(
    result: dict[str, Any],
) -> None:
    daily, frozen = (result["policies"][name]["by_day"] for name in ("daily", "frozen"))
    assert daily[:2] == frozen[:2]
    assert daily[2]["logloss"] != frozen[2]["logloss"]
    assert daily[0]["auc"] == 0.5
    assert result["training"]["frozen_rule"] == "first day"
    assert result["after_freeze"]["rows"] == 300 * (DAYS - 1)


@pytest.mark.slow
def test_what_became_known_later_changes_no_earlier_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = START + timedelta(days=3, hours=7, minutes=20)
    cut_us = int(cut.timestamp() * 1e6)
    seen: list[dict[str, np.ndarray]] = []
    original = replay_module._Run.result

    def spy(self: Any, counts: Any) -> dict[str, Any]:
        early = self.is_shown & (self.arrival_us <= cut_us)
        ids = np.array(self.events["impression_id"].to_pylist())[early]
        order = np.argsort(ids)
        seen.append({name: values[early][order] for name, values in self.predictions.items()})
        seen[-1]["all"] = self.predictions["fresh"][self.is_shown]
        return original(self, counts)

    monkeypatch.setattr(replay_module._Run, "result", spy)
    rows = world()
    replay(declare(), save(tmp_path, rows))
    replay(declare(), save(tmp_path, without(rows, lambda known: known < cut)))
    for name in ("fresh", "daily", "frozen"):
        assert np.array_equal(seen[0][name], seen[1][name])
    assert not np.array_equal(seen[0]["all"], seen[1]["all"])


@pytest.mark.slow
def test_the_order_of_the_file_and_repeated_rows_change_no_score(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    rows = world()
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    again = replay(declare(), save(tmp_path, [*shuffled, *shuffled[:40]]))
    assert again["policies"] == result["policies"]
    counts = again["counts"]
    assert counts["duplicates"] == 40
    assert counts["fates"] == {"duplicate_engagement": 40, "duplicate_impression": 40}
    assert counts["unaccounted"] == 0
    assert counts["unsorted"] > 0


@pytest.mark.slow
def test_engagements_in_a_second_file_and_no_windows(tmp_path: Path) -> None:
    rows = world(100)
    save(tmp_path, rows)
    clicks = [row for row in rows if row["hit"]]
    known = [datetime.fromisoformat(row["at"]) + timedelta(seconds=row["delay"]) for row in clicks]
    again_ms = int(known[0].timestamp() * 1000) + 60_000
    table = pa.table(
        {
            "order": [*(row["id"] for row in clicks), clicks[0]["id"], "ghost"],
            "ms": [
                *(int(at.timestamp() * 1000) for at in known),
                again_ms,
                1_704_100_000_000,
            ],
        }
    )
    pq.write_table(table, tmp_path / "clicks.parquet")
    spec = declare(
        source={
            "kind": "files",
            "impressions": impressions(),
            "engagements": {
                "path": "*.parquet",
                "impression_id": "order",
                "time": {"expression": "ms", "format": "unix_ms"},
            },
        },
        label={"engagement": "hit", "attribution_window": "3h"},
        windows=[],
        request_features=[{"name": "item_id", "kind": "hash", "of": "item"}],
        model={"family": "ftrl", "categorical": ["item_id"], "table_bits": 10},
    )
    counts = replay(spec, tmp_path)["counts"]
    assert counts["engagements"] == len(clicks) + 2
    assert counts["unmatched"] == 1
    assert counts["fates"] == {"duplicate_engagement": 1, "unmatched": 1}
    assert (counts["unaccounted"], counts["scored"]) == (0, 100 * DAYS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [{}, {"delayed_feedback": "fnw"}, {"delayed_feedback": "esdfm"}, {"negative_rate": 0.5}],
)
def test_provisional_negatives_are_corrected(tmp_path: Path, policy: dict[str, Any]) -> None:
    label = {"engagement": "hit", "attribution_window": "2h", "provisional_after": "20m", **policy}
    found = replay(declare(label=label), save(tmp_path, world()))
    counts = found["counts"]
    hits = sum(row["hit"] for row in world())
    assert counts["corrections"] > 0
    assert counts["unaccounted"] == 0
    assert counts["engagements"] == hits
    assert counts["silent"] == 300 * DAYS - hits
    assert found["label_rate"] == pytest.approx(hits / (300 * DAYS))
    assert found["training"]["gates"]["fresh"]["suite_disagreements"] == 0


def test_a_window_that_the_data_gate_refuses_is_not_learned(tmp_path: Path) -> None:
    gates = {"data": {"min_rows": 10, "label_rate": [0.99, 1.0]}}
    found = replay(declare(gates=gates), save(tmp_path, world()))
    fresh = found["training"]["gates"]["fresh"]
    assert fresh["refused"] == fresh["steps"] > 0
    assert fresh["reasons"] == {"label rate out of bounds": fresh["steps"]}
    assert fresh["suite_disagreements"] == 0
    assert found["policies"]["fresh"]["auc"] == 0.5
    assert "does not beat" in found["explanation"]


def samples(rows: int, rate: float) -> pa.Table:
    label = np.zeros(rows, dtype=np.int8)
    label[::3] = 1
    return pa.table(
        {
            "impression_id": [str(i) for i in range(rows)],
            "revision": np.zeros(rows, dtype=np.int32),
            "label": label,
            "item_id": np.arange(rows, dtype=np.int64) % 5,
            "rate": np.full(rows, rate),
            "positive_weight": label.astype(np.float32),
            "negative_weight": (1 - label).astype(np.float32),
        }
    )


class Broken:
    """Stands for a model whose weights overflow on a marked window."""

    def __init__(self, model: Any) -> None:
        self.model, self.bad = model, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def learn(self, window: pa.Table) -> Any:
        self.bad = self.bad or window["rate"][0].as_py() > 1
        return self.model.learn(window)

    def predict(self, window: pa.Table) -> Any:
        return self.model.predict(window) * (np.nan if self.bad else 1.0)

    def load_state(self, state: Any) -> None:
        self.bad = False
        self.model.load_state(state)


def test_a_step_that_ends_in_no_finite_prediction_is_taken_back() -> None:
    learner, plain = GatedLearner(declare()), GatedLearner(declare())
    learner.model = Broken(learner.model)  # type: ignore[assignment]
    for rate in (0.1, 0.2, 5.0, 0.3):
        learner.learn(samples(30, rate))
        if rate < 1:
            plain.learn(samples(30, rate))
    assert (learner.gates.refused, learner.gates.refused_rows) == (1, 30)
    mine, other = learner.model.state(), plain.model.state()
    assert all(np.array_equal(mine[name], other[name]) for name in other)


def test_the_cheap_data_gate_sees_missing_inputs() -> None:
    assert window_reasons(declare(), samples(30, 0.5)) == []
    assert window_reasons(declare(), samples(30, np.nan)) == ["missing share of rate too high"]


def test_files_without_a_usable_row_are_named(tmp_path: Path) -> None:
    rows = world(2)
    source = {
        "kind": "files",
        "impressions": {**impressions(), "where": "item = 'nobody'"},
        "label": {"value": "hit", "delay_s": "delay"},
    }
    with pytest.raises(InputError, match="no impression is left"):
        replay(declare(source=source), save(tmp_path, rows))
    source = {
        "kind": "files",
        "impressions": impressions(),
        "label": {"value": "NULL", "delay_s": "delay"},
    }
    with pytest.raises(InputError, match="got a label"):
        replay(declare(source=source), save(tmp_path, rows))


def test_an_explanation_names_the_figures() -> None:
    labels = np.array([0, 1] * 30, dtype=np.int8)
    good, bad = np.where(labels == 1, 0.8, 0.2), np.full(60, 0.5)
    days = np.array(["2024-01-01"] * 30 + ["2024-01-02"] * 30)
    compared = comparisons(labels, {"fresh": bad, "daily": good, "frozen": bad}, days, 0.95, 0)
    assert [one["holds"] for one in compared] == [False, True]
    figures = {
        name: {"logloss": loss, "auc": auc, "calibration": 1.0}
        for name, loss, auc in (("fresh", 0.69, 0.5), ("daily", 0.22, 1.0), ("frozen", 0.69, 0.5))
    }
    text = explanation(figures, compared)
    assert text is not None
    assert "fresh does not beat daily" in text
    assert "0 of 2 days" in text
    assert "not chance" in text


def test_results_are_written_between_their_marks(tmp_path: Path, result: dict[str, Any]) -> None:
    import json

    path, document = tmp_path / "out" / "replay" / "toy.json", tmp_path / "results.md"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    assert write(document, tmp_path / "out") == ["replay"]
    document.write_text("# Mine\n\n" + document.read_text().split("\n\n", 1)[1] + "\ntail\n")
    write(document, tmp_path / "out")
    text = document.read_text()
    assert text.startswith("# Mine")
    assert text.rstrip().endswith("tail")
    assert (text.count("<!-- replay begins -->"), text.count("<!-- replay ends -->")) == (1, 1)
    assert render([read(path)]) in text
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="not a replay result"):
        write(document, tmp_path / "out")


def test_faults_are_told_by_where_they_fell(tmp_path: Path) -> None:
    import json

    told = {"what": "kills", "command": "pytest x", "kills": 9, "stages": {"a": 5, "b": 4}}
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "one.json").write_text(json.dumps(told | {"end": "same bytes"}))
    assert write(tmp_path / "results.md", tmp_path) == ["faults"]
    line = "| kills (`pytest x`) | 9 | a 5, b 4 | - | - | - | - | same bytes |"
    assert line in (tmp_path / "results.md").read_text()
