"""A line with conversions, end to end: simulated, ticked, learned, judged; and what ESMM gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from headrace import cycle, evaluate
from headrace.account import account
from headrace.declaration import LineSpec, ModelSpec
from headrace.events import task_scores
from headrace.gates import Evidence
from headrace.ingest.service import import_history
from headrace.labels.revisions import conversions_settled, newest
from headrace.line import LineStore
from headrace.model import Model
from headrace.sample import head_tick, read_samples
from headrace.serving import payload
from headrace.serving.oip import tensors
from headrace.serving.resident import Resident
from headrace.serving.scored import Scored
from headrace.settings import PROJECT, Settings, load_settings
from headrace.simulate.world import SECOND_US, SimulatorConfig, history
from headrace.store import Store

pytestmark = pytest.mark.slow
END_US = 1_763_000_000_000_000
CONFIG = SimulatorConfig(history_s=1500, requests_per_s=2.0)
CONVERSION = {"engagement": "redeem", "attribution_window": "20m", "provisional_after": "3m"}


@dataclass(frozen=True)
class Lived:
    """A home in which a past of the campaign was imported, and its samples."""

    settings: Settings
    spec: LineSpec
    samples: pa.Table


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    root = tmp_path_factory.mktemp("redeemed")
    raw = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text(encoding="utf-8"))
    raw["label"]["conversion"] = CONVERSION
    raw["model"] |= {"table_bits": 12, "epochs": 2}
    raw["gates"]["model"]["min_conversions"] = 5
    spec = LineSpec.model_validate(raw)
    (root / "lines").mkdir()
    (root / "lines" / "coupons.yaml").write_text(
        yaml.safe_dump(raw, sort_keys=False), encoding="utf-8"
    )
    settings = load_settings(
        {"HEADRACE_HOME": str(root), "HEADRACE_LINES_DIR": str(root / "lines")}
    )
    Store(settings).apply()
    import_history(settings, spec, history(spec, CONFIG, END_US), 30 * SECOND_US)
    home = settings.line_home(spec.line)
    yield Lived(settings, spec, read_samples(spec, home, 0, head_tick(home)))


def test_every_event_is_in_one_place_and_conversions_correct_their_samples(lived: Lived) -> None:
    counts = account(lived.settings, lived.spec)
    assert counts["lost"] == counts["duplicated"] == 0
    assert counts["duplicate_conversion"] > 0
    late = lived.samples.filter(pc.less(lived.samples["conversion_negative_weight"], 0))
    assert late.num_rows > 100
    assert set(late["revision"].to_pylist()) == {1, 2}
    once = newest(lived.samples)
    assert pc.count_distinct(once["impression_id"]).as_py() == once.num_rows
    for name in task_scores(lived.spec):  # nobody scored what was imported
        assert np.isnan(once[name].to_numpy()).all()


def test_a_full_training_is_judged_by_both_tasks(lived: Lived) -> None:
    began = cycle.started(cycle.new_run(), "full")
    trained = cycle.learn(
        lived.settings, lived.spec, cycle.begin(lived.settings, lived.spec, began)
    )
    assert trained.version is not None
    evidence = evaluate.evaluate(lived.settings, lived.spec, trained.version, wait_s=0)
    assert evidence.tasks is not None
    both, given_click = (evidence.tasks[t] for t in ("click_and_conversion", "conversion"))
    assert evidence.rows is not None
    assert both.rows is not None
    assert given_click.rows is not None
    assert given_click.rows < both.rows < evidence.rows  # clicked < settled < all
    assert both.positives == given_click.positives
    assert both.positives is not None
    assert both.positives >= 5
    assert both.calibration is not None
    assert 0.3 < both.calibration < 3
    ended = cycle.conclude(lived.settings, lived.spec, trained, trained.version)
    assert (ended.outcome, ended.reasons) == ("promoted", ())
    store = LineStore(lived.settings.line_store_url(lived.spec.line), lived.spec.line)
    assert Evidence.from_dict(store.evidence(trained.version) or {}).tasks == evidence.tasks
    version, state = store.load(trained.version)
    assert 0 < version.metrics["click_and_conversion_rate"] < version.metrics["label_rate"]
    resident = Resident(lived.spec)
    resident.load(version, state)
    answers = resident.model.predict_tasks(lived.samples.slice(0, 10))
    assert list(answers) == ["click", "conversion", "click_and_conversion"]
    told = _told(lived.spec, answers)
    both = told["conversion_score"] * told["score"]
    np.testing.assert_array_equal(told["click_and_conversion_score"], both)


def _told(spec: LineSpec, answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a server tells of these answers, the same for people and over the protocol."""
    tasks = dict(answers)
    names = [f"r:{row}" for row in range(len(tasks["click"]))]
    scored = Scored("r", "v000001", END_US, 1.0, names, tasks.pop("click"), tasks, "champion", 1.0)
    rows = payload.score_answer(scored)["scores"]
    outputs = {output.name: output.data for output in tensors.outputs_of(scored)}
    assert list(outputs) == list(tensors.output_types(spec))
    assert {name: [row[name] for row in rows] for name in outputs} == outputs
    payload.ScoreResponse.model_validate(payload.score_answer(scored))
    del outputs["impression_id"]
    return {name: np.array(values) for name, values in outputs.items()}


def test_conversions_are_judged_only_when_they_had_time_to_come(lived: Lived) -> None:
    spec, rows = lived.spec, newest(lived.samples)
    settled = rows.filter(pa.array(conversions_settled(spec, rows)))
    newest_us = pc.max(rows["emitted_at"].cast(pa.int64())).as_py()
    age_us = newest_us - settled["served_at"].cast(pa.int64()).to_numpy()
    assert 0 < settled.num_rows < rows.num_rows
    assert age_us.min() >= 180 * SECOND_US
    assert conversions_settled(spec, rows.slice(0, 0)).size == 0


def test_over_all_impressions_it_is_less_biased_than_a_model_of_the_clicked_ones() -> None:
    """A world whose truth is known: what makes users click an item makes them redeem it, and most
    items are rarely clicked. The rival learns conversions from clicked rows alone.
    """
    draw, rows, users, items = np.random.default_rng(0), 40_000, 300, 200
    user, item = draw.integers(0, users, rows), (items * draw.random(rows) ** 2).astype(np.int64)
    liking = (draw.normal(0, 1, (users, 2))[user] * draw.normal(0, 1, (items, 2))[item]).sum(1)
    appeal = draw.normal(0, 1.2, items)[item]
    clicked = draw.random(rows) < 1 / (1 + np.exp(3.0 - appeal - 0.9 * liking))
    truth = 1 / (1 + np.exp(1.0 - 0.7 * appeal - 0.9 * liking))
    converted = clicked & (draw.random(rows) < truth)

    def weighed(of: pa.Table, label: np.ndarray, task: str = "") -> pa.Table:
        of = of.append_column(f"{task}positive_weight", pa.array(label.astype(np.float32)))
        return of.append_column(f"{task}negative_weight", pa.array((~label).astype(np.float32)))

    shown = pa.table({"user": user, "item": item})
    spec = ModelSpec(
        family="ftrl", categorical=("user", "item"), table_bits=12, batch_size=256, ftrl_alpha=0.1
    )
    entire, of_clicks = Model(spec, 7, conversion=True), Model(spec, 7)
    entire.learn(weighed(weighed(shown, clicked), converted, "conversion_"))
    of_clicks.learn(weighed(shown.filter(pa.array(clicked)), converted[clicked]))
    ours, theirs = entire.predict_tasks(shown)["conversion"], of_clicks.predict(shown)
    assert truth.mean() < 0.7 * truth[clicked].mean()  # the clicked are another population
    assert 0 < (ours - truth).mean() < 0.9 * (theirs - truth).mean()
    assert np.abs(ours - truth).mean() < 0.9 * np.abs(theirs - truth).mean()
    assert np.corrcoef(ours, truth)[0, 1] > np.corrcoef(theirs, truth)[0, 1]
