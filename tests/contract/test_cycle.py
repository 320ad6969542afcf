"""The cycle on a small line: what is promoted, rejected, quarantined, and always recorded."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import cycle, evaluate, launch, promote, requests, train
from headrace.atomic import write_json
from headrace.cycle import Cycle, Interval
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, InputError
from headrace.events import TIME, event_schema, sample_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.sample import Quarantine, TickManifest, head_tick, read_samples, read_tick
from headrace.serving.swap import Follower
from headrace.settings import PROJECT, Settings, find_line, load_settings

LINE = """
line: tiny
columns: {user_id: string, item_id: string}
source: {kind: live}
label: {engagement: click, attribution_window: 10m, provisional_after: 10s}
windows:
  - {name: item_clicks_count_1ms, key: [item_id], event: click, aggregate: count, window: 1ms}
request_features:
  - {name: user, kind: hash, of: user_id}
  - {name: item, kind: hash, of: item_id}
  - {name: clicks_log, kind: log1p, of: item_clicks_count_1ms}
model:
  categorical: [user, item]
  numeric: [clicks_log]
  table_bits: 8
  embedding_dim: 2
  hidden: [4]
  batch_size: 64
  epochs: 2
gates:
  data: {min_rows: 100, label_rate: [0.05, 0.8], max_missing_share: 0.2}
  model: {min_rows: 100, max_logloss_increase: 0.02, calibration: [0.5, 2.0]}
"""
ROWS = 50
START_US = 1_700_000_000_000_000


@dataclass
class Line:
    """A line whose ticks the test writes itself: impressions, one click event for each click.

    Its window is so short that it is empty at every tick, as the rows say.
    """

    settings: Settings
    spec: LineSpec

    @property
    def home(self) -> Path:
        return self.settings.line_home(self.spec.line)

    @property
    def store(self) -> LineStore:
        return LineStore(self.settings.line_store_url(self.spec.line), self.spec.line)

    def tick(
        self,
        count: int = 1,
        click: Callable[[np.ndarray], np.ndarray] | None = None,
        version: str = "bootstrap",
    ) -> None:
        """Commit ticks of 50 samples; items 0-2 of 10 are clicked at 60%, the others at 5%."""
        for _ in range(count):
            self._one(head_tick(self.home), click, version)

    def _one(
        self, tick: int, click: Callable[[np.ndarray], np.ndarray] | None, version: str
    ) -> None:
        generator = np.random.default_rng(tick)
        items = generator.integers(0, 10, ROWS)
        clicked = generator.random(ROWS) < np.where(items < 3, 0.6, 0.05)
        labels = (clicked if click is None else click(clicked)).astype(np.int8)
        ids = [f"{tick}:{i}" for i in range(ROWS)]
        columns = pa.table(
            {
                "user_id": [f"u{u}" for u in generator.integers(0, 20, ROWS)],
                "item_id": [f"i{i}" for i in items],
                "request_at": np.full(ROWS, START_US + tick * 1_000_000),
                "item_clicks_count_1ms": np.zeros(ROWS, np.int64),
            }
        )
        first, stop = self._log(tick, ids, columns, np.flatnonzero(labels))
        engagements = np.full(ROWS, -1)
        engagements[labels == 1] = np.arange(first + ROWS, stop)
        at = pa.array(columns["request_at"].to_numpy()).cast(TIME)
        table = {name: columns[name] for name in columns.column_names} | {
            **{f"{view}__at": pa.nulls(ROWS, TIME) for view in self.spec.views},
            **requests.transform(self.spec, columns).to_pydict(),
            "impression_id": ids,
            "request_id": ids,
            "served_at": at,
            "event_at": at,
            "emitted_at": at,
            "version": [version] * ROWS,
            "score": np.full(ROWS, 0.2),
            "arm": ["champion"] * ROWS,
            "propensity": np.ones(ROWS),
            "fallback": pa.nulls(ROWS, pa.string()),
            "revision": np.zeros(ROWS, np.int32),
            "label": labels,
            "positive_weight": labels.astype(np.float32),
            "negative_weight": (1 - labels).astype(np.float32),
            "impression_offset": np.arange(first, first + ROWS),
            "engagement_offset": engagements,
        }
        self.commit(tick, table, (first, stop))

    def commit(self, tick: int, columns: dict[str, Any], events: tuple[int, int]) -> None:
        schema = sample_schema(self.spec)
        samples = pa.table({f.name: columns[f.name] for f in schema}).cast(schema)
        path = f"samples/b={tick:08d}.parquet"
        (self.home / "samples").mkdir(parents=True, exist_ok=True)
        pq.write_table(samples, self.home / path)
        at_us = START_US + tick * 1_000_000 + 2_000
        manifest = TickManifest(tick, at_us, events, (0, 0), path, None, {}, {"samples": ROWS})
        write_json(self.home / "ticks" / f"{tick:08d}.json", manifest.to_json())

    def _log(
        self, tick: int, ids: list[str], columns: pa.Table, clicks: np.ndarray
    ) -> tuple[int, int]:
        schema = event_schema(self.spec)
        rows = ROWS + clicks.size
        at = pa.array(np.full(rows, START_US + tick * 1_000_000)).cast(TIME)
        every = np.concatenate([np.arange(ROWS), clicks])
        given: dict[str, Any] = {
            "event": ["impression"] * ROWS + ["click"] * clicks.size,
            "impression_id": [ids[i] for i in every],
            "request_id": [ids[i] for i in every],
            "event_at": at,
            "arrival_at": at,
            "value": np.ones(rows, np.int64),
            **{name: columns[name].take(pa.array(every)) for name in self.spec.columns},
        }
        log = FileLog(self.home / "log" / "events", schema, writer=True)
        try:
            first = log.append(pa.table({f.name: given[f.name] for f in schema}).cast(schema))
        finally:
            log.close()
        return first, first + rows

    def begin(self) -> Cycle:
        began = cycle.started(cycle.new_run(), "incremental")
        return cycle.begin(self.settings, self.spec, began)

    def learn(self) -> Cycle:
        """A cycle up to its trained candidate."""
        return cycle.learn(self.settings, self.spec, self.begin())

    def finish(self, trained: Cycle) -> Cycle:
        """Evaluate on the ticks that came since, and conclude."""
        assert trained.version is not None
        evaluate.evaluate(self.settings, self.spec, trained.version, wait_s=0)
        return cycle.conclude(self.settings, self.spec, trained, trained.version)

    @property
    def champion(self) -> str:
        champion = self.store.champion()
        assert champion is not None
        return champion.version

    def recorded(self) -> Cycle:
        return cycle.records(self.settings, self.spec)[-1]


def opened(root: Path) -> Line:
    settings = load_settings(
        {
            "HEADRACE_HOME": str(root / "home"),
            "HEADRACE_LINES_DIR": str(root / "lines"),
            "HEADRACE_FEATURE_REPO": str(PROJECT / "feature_repo"),
        }
    )
    return Line(settings, find_line(settings, "tiny"))


def bootstrap(root: Path) -> None:
    """Make a home there whose first champion came from a full training through Feast."""
    from headrace.store import Store

    (root / "lines").mkdir()
    (root / "lines" / "tiny.yaml").write_text(LINE, encoding="utf-8")
    line = opened(root)
    Store(line.settings).apply()
    line.tick(40)
    ended = cycle.run(line.settings, line.spec, "full", wait_s=0)
    assert (ended.outcome, ended.reasons) == ("promoted", ())


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


def test_without_later_rows_the_candidate_is_rejected_but_its_window_kept(line: Line) -> None:
    ended = line.finish(line.learn())
    assert ended.outcome == "rejected"
    assert any(r.startswith("enough_rows: 0 later rows") for r in ended.reasons)
    assert Quarantine(line.home).intervals() == []
    assert cycle.plan(line.settings, line.spec) == Interval(34, 40)


def test_a_served_row_that_does_not_recompute_blocks_the_promotion(line: Line) -> None:
    line.tick(3, version="v000001")
    trained = line.learn()
    line.tick(4, version="v000001")
    path = line.home / "samples" / "b=00000044.parquet"
    samples = pq.read_table(path, partitioning=None)
    place = samples.schema.get_field_index("clicks_log")
    off = pa.array([5e-324, *[0.0] * (ROWS - 1)])  # the smallest number above 0
    pq.write_table(samples.set_column(place, samples.schema.field(place), off), path)
    ended = line.finish(trained)
    assert (ended.outcome, line.champion) == ("rejected", "v000001")
    assert ended.reasons == (
        f"parity_holds: 1 mismatches in {4 * ROWS} rows (1 formula), must be 0",
    )
    assert Quarantine(line.home).intervals() == []


def test_a_candidate_whose_parent_was_rolled_away_is_rejected(line: Line) -> None:
    trained = line.learn()
    line.tick(4)
    other = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), other, "promote", "another writer")
    ended = line.finish(trained)
    assert ended.outcome == "rejected"
    assert any(r.startswith("descends_from_champion") for r in ended.reasons)
    assert line.champion == other


def test_a_bad_version_promoted_by_force_is_rolled_back_in_a_second_and_stays_out(
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
        began = time.monotonic()
        back = promote.roll_back(line.settings, line.spec, reason="drill")
        await_version(follower, good, 1)
        assert time.monotonic() - began < 1
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


def test_evidence_against_an_earlier_champion_is_foreign(line: Line) -> None:
    trained = line.learn()
    assert trained.version is not None
    line.tick(4)
    evaluate.evaluate(line.settings, line.spec, trained.version, wait_s=0)
    other = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), other, "promote", "another writer")
    verdict = promote.promote(line.settings, line.spec, trained.version)
    assert "evidence_is_for_these_versions" in verdict.failed


def test_promotion_without_evidence_is_rejected(line: Line) -> None:
    candidate = train.incremental(line.settings, line.spec, 34, 40)
    verdict = promote.promote(line.settings, line.spec, candidate)
    assert verdict.failed == ("evidence",)
    assert line.champion == "v000001"


def test_a_window_that_skipped_the_data_gate_is_rejected(line: Line) -> None:
    line.tick(2)
    candidate = train.incremental(line.settings, line.spec, 34, 42)
    line.tick(4)
    evaluate.evaluate(line.settings, line.spec, candidate, wait_s=0)
    assert promote.promote(line.settings, line.spec, candidate).failed == ("data_gate_passed",)


def test_promoting_twice_changes_nothing(line: Line) -> None:
    trained = line.learn()
    line.tick(4)
    assert line.finish(trained).outcome == "promoted"
    before = line.store.champion()
    assert promote.promote(line.settings, line.spec, str(trained.version)).passed
    assert line.store.champion() == before


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


def correct_five(line: Line, tick: int) -> None:
    """The next tick corrects five negatives of that one."""
    first = read_samples(line.spec, line.home, tick, tick + 1)
    negatives = first.filter(pa.compute.equal(first["label"], 0)).slice(0, 5)
    columns: dict[str, Any] = {name: negatives[name] for name in negatives.column_names} | {
        "revision": np.ones(5, np.int32),
        "label": np.ones(5, np.int8),
        "positive_weight": np.ones(5, np.float32),
        "negative_weight": np.full(5, -1, np.float32),
    }
    head = head_tick(line.home)
    stop = read_tick(line.home, head - 1).events[1]
    line.commit(head, columns, (stop, stop))


@pytest.mark.slow
@pytest.mark.parametrize(
    "label",
    ["delayed_feedback: naive", "delayed_feedback: fnw", "delayed_feedback: esdfm",
     "negative_rate: 0.3"],
)  # fmt: skip
def test_weighted_learning_is_judged_by_true_labels_and_repeats_its_bytes(
    line: Line, tmp_path: Path, label: str
) -> None:
    declared = LINE.replace("provisional_after: 10s}", f"provisional_after: 10s, {label}}}")
    (tmp_path / "copy" / "lines" / "tiny.yaml").write_text(declared, encoding="utf-8")
    line = opened(tmp_path / "copy")
    base = train.full(line.settings, line.spec, 34)
    line.store.advance(line.store.champion(), base, "promote", "test")
    line.tick(13)
    correct_five(line, 41)
    trained = line.learn()
    truth = read_samples(line.spec, line.home, 34, 54, latest=True)["label"].to_numpy()
    version = line.store.get(str(trained.version))
    assert version.metrics["label_rate"] == pytest.approx(truth.mean())
    again = train.incremental(line.settings, line.spec, 34, 54)
    assert line.store.get(again).fingerprint == version.fingerprint
    line.tick(25)
    correct_five(line, 56)
    ended = line.finish(trained)
    assert (ended.outcome, ended.reasons) == ("promoted", ())
    evidence = line.store.evidence(str(trained.version))
    assert evidence is not None
    young = 10 if "fnw" in label else 0  # ticks of a second whose silence is not judged yet
    assert evidence["rows"] == (25 - young) * ROWS


def test_a_correction_of_a_quarantined_sample_takes_nothing_back(line: Line) -> None:
    correct_five(line, 36)
    learned = train.window_samples(line.settings, line.spec, 34, 41).samples
    assert sum(learned["negative_weight"].to_pylist()[-5:]) == -5
    Quarantine(line.home).add(36, 37, ["test"])
    window = train.window_samples(line.settings, line.spec, 34, 41)
    assert window.excluded == [(36, 37)]
    assert sum(window.samples["negative_weight"].to_pylist()[-5:]) == 0
    assert sum(window.samples["positive_weight"].to_pylist()[-5:]) == 5


def test_evaluation_rows_are_newest_revisions_of_impressions_first_seen_there(line: Line) -> None:
    rows = read_samples(line.spec, line.home, 38, 40)
    corrected = rows.slice(3, 1).set_column(
        rows.schema.get_field_index("revision"), "revision", pa.array([1], pa.int32())
    )
    foreign = read_samples(line.spec, line.home, 20, 21).slice(0, 2)
    foreign = foreign.set_column(
        rows.schema.get_field_index("revision"), "revision", pa.array([1, 1], pa.int32())
    )
    both = pa.concat_tables([rows, corrected.cast(rows.schema), foreign.cast(rows.schema)])
    seen = evaluate.first_seen(both)
    assert seen.num_rows == rows.num_rows
    assert seen["revision"].to_pylist() == [0] * (rows.num_rows - 1) + [1]


def test_without_a_champion_an_incremental_cycle_says_what_to_do(line: Line) -> None:
    shutil.rmtree(line.home / "champion")
    with pytest.raises(InputError, match="run full_train first"):
        cycle.plan(line.settings, line.spec)


@pytest.mark.e2e
def test_the_pipeline_runs_here_and_reports_what_its_components_recorded(line: Line) -> None:
    line.tick(3)
    done = threading.Event()

    def traffic() -> None:
        while not done.wait(0.5):
            line.tick(1)

    sender = threading.Thread(target=traffic)
    sender.start()
    try:
        result = launch.run_pipeline(line.settings, "incremental_train", "tiny")
    finally:
        done.set()
        sender.join()
    assert (result.outcome, result.stage, result.reasons) == ("promoted", "promote", ())
    assert line.champion == result.version == "v000002"
    assert result.log is not None
    assert "outcome='promoted'" in Path(result.log).read_text()
    (shown,) = (line.settings.home / "kfp").rglob("evaluate/calibration")
    assert f"<h1>tiny {result.version}</h1>" in shown.read_text()
    metadata = (shown.parent / "executor_output.json").read_text()
    assert '"confidenceMetrics"' in metadata
    assert '"log_loss"' in metadata


@pytest.mark.e2e
def test_a_window_that_the_pipeline_refuses_trains_nothing(line: Line) -> None:
    line.tick(30, click=np.ones_like)
    result = launch.run_pipeline(line.settings, "incremental_train", "tiny")
    assert (result.outcome, result.stage, result.version) == ("rejected", "data", None)
    assert [v.version for v in line.store.versions()] == ["v000001"]
    assert result.log is not None
    assert "train" not in {p.name for p in (line.settings.home / "kfp").glob("*/*/*")}


@pytest.mark.e2e
def test_a_component_that_fails_is_a_failed_run_with_its_reason(line: Line) -> None:
    (line.home / "samples" / "b=00000036.parquet").write_bytes(b"torn")
    result = launch.run_pipeline(line.settings, "incremental_train", "tiny")
    assert (result.outcome, result.stage) == ("failed", "data")
    assert result.reasons[0].startswith("ArrowInvalid: ")


@pytest.mark.e2e
def test_a_full_training_runs_as_a_pipeline(line: Line) -> None:
    promoted = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), promoted, "promote", "test")
    line.tick(2)
    sender = threading.Timer(6.0, line.tick, (1,))
    sender.start()
    result = launch.run_pipeline(line.settings, "full_train", "tiny")
    sender.join()
    assert result.outcome == "promoted", result
