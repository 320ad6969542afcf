"""A window is compared with the line's own past: what always moved may move on."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import baseline, quality, rules
from headrace.baseline import Vitals
from headrace.declaration import LineSpec
from tests.unit.test_quality import ROWS, spec, window

__all__ = ["spec"]


def rows(spec: LineSpec, seed: int, **given: Any) -> pa.Table:
    draw = np.random.default_rng(seed)
    made = {
        "impression_id": [f"{seed}-{i}" for i in range(ROWS)],
        "impression_offset": np.arange(ROWS) + seed * ROWS,
        "user": draw.integers(0, 40, ROWS),
        "item_category": draw.integers(0, 8, ROWS),
        "item_ctr_1m": draw.beta(2, 18, ROWS),
    }
    return window(spec, **(made | given))


@cache
def ten_windows(declared: str) -> pa.Table:
    spec = LineSpec.model_validate_json(declared)
    return pa.concat_tables([rows(spec, seed) for seed in range(10)]).combine_chunks()


def past(spec: LineSpec) -> pa.Table:
    return ten_windows(spec.model_dump_json())


def broken(spec: LineSpec, samples: pa.Table, vitals: Vitals | None = None) -> list[str]:
    figures = baseline.figures(spec, samples, past(spec), vitals)
    told = rules.broken(rules.frame(spec, samples, figures=figures), rules.declared(spec, figures))
    assert quality.check(spec, samples, figures=figures).reasons == told
    return told


def test_a_window_like_the_past_breaks_nothing(spec: LineSpec) -> None:
    assert broken(spec, rows(spec, 11)) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"item_ctr_1m": np.full(ROWS, 0.1)}, "drift of item_ctr_1m is"),
        ({"item_ctr_1m": np.linspace(5, 50, ROWS)}, "drift of item_ctr_1m is"),
        ({"item_category": np.full(ROWS, 3)}, "share of the commonest item_category is 1,"),
        ({"item_category": np.arange(ROWS) + 100}, "drift of item_category is"),
    ],
)
def test_a_stuck_or_moved_input_is_named(spec: LineSpec, given: dict[str, Any], said: str) -> None:
    assert any(reason.startswith(said) for reason in broken(spec, rows(spec, 11, **given)))


def test_the_clock_alone_may_stand_still(spec: LineSpec) -> None:
    inputs = (*spec.model.categorical, "hour")
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"categorical": inputs})})
    before = pa.concat_tables([rows(spec, n, hour=np.full(ROWS, n)) for n in range(10)])
    found = baseline.figures(spec, rows(spec, 11, hour=np.full(ROWS, 11)), before)
    assert "share of the commonest hour" not in found
    assert found["share of the commonest user"].limit == 0.99


def test_what_moves_all_the_time_may_move_on(spec: LineSpec) -> None:
    restless = [rows(spec, n, item_category=np.full(ROWS, n)) for n in range(12)]
    before = pa.concat_tables(restless[:-1]).combine_chunks()
    figure = baseline.figures(spec, restless[-1], before)["drift of item_category"]
    assert 1.0 < figure.value < figure.limit


def test_a_short_past_says_nothing(spec: LineSpec) -> None:
    assert not any("drift" in name for name in baseline.figures(spec, rows(spec, 9), rows(spec, 1)))


def test_an_account_that_clicks_all_it_sees_is_found_over_past_and_window(spec: LineSpec) -> None:
    bot = np.arange(ROWS) % 25 == 0
    given = {"user": np.where(bot, 999, np.arange(ROWS) % 40), "label": bot.astype("int8")}
    found = baseline.figures(spec, rows(spec, 11, **given))["label rate that one user surely has"]
    assert found.value == pytest.approx(16 / (16 + 16))
    assert found.value > found.limit == 0.4


def test_an_input_that_suddenly_tells_the_label_is_named(spec: LineSpec) -> None:
    labels = (np.arange(ROWS) % 10 == 0).astype("int8")
    draw = np.random.default_rng(5)
    leaking = np.where(labels == 1, 7, draw.integers(0, 8, ROWS))
    told = broken(spec, rows(spec, 11, label=labels, item_category=leaking))
    assert [reason.partition(" is ")[0] for reason in told] == [
        "share of the label that item_category tells"
    ]


@pytest.mark.parametrize(("bins", "share"), [([0, 0, 1, 1], 1.0), ([0, 1, 0, 1], 0.0)])
def test_information_is_a_share_of_the_labels_entropy(bins: list[int], share: float) -> None:
    assert baseline.information(np.array(bins), np.array([0, 0, 1, 1])) == pytest.approx(share)
    assert np.isnan(baseline.information(np.array(bins), np.ones(4, int)))


@pytest.mark.parametrize("flipped", [False, True])
def test_labels_that_are_the_wrong_way_round_are_told_by_the_scores(
    spec: LineSpec, flipped: bool
) -> None:
    gate = spec.gates.data.model_copy(update={"max_misranked": 0.5, "label_rate": (0.0, 1.0)})
    asked = spec.model_copy(update={"gates": spec.gates.model_copy(update={"data": gate})})
    draw = np.random.default_rng(3)
    labels = draw.random(ROWS) < 0.5
    given = {"score": np.clip(0.4 + 0.2 * labels + draw.normal(0, 0.1, ROWS), 0, 1)}
    samples = rows(spec, 11, label=(labels ^ flipped).astype("int8"), **given)
    name = "share of pairs that served scores surely rank the wrong way"
    assert any(reason.startswith(name) for reason in broken(asked, samples)) == flipped
    assert name not in baseline.figures(spec, samples)  # only where it is declared
    unscored = rows(spec, 11, score=np.full(ROWS, np.nan))
    assert np.isnan(baseline.figures(asked, unscored)[name].value)


def test_lost_labels_are_a_share_of_all_engagements(spec: LineSpec) -> None:
    lost = Vitals(30, 600, 100, fates={"too_late": 40, "duplicate_engagement": 10})
    said = "share of engagements without an impression in time is 0.4, must be at most 0.15"
    assert said in broken(spec, rows(spec, 11), lost)
    sound = Vitals(30, 600, 100, fates={"duplicate_engagement": 10})
    assert broken(spec, rows(spec, 11), sound) == []


USUAL = Vitals(300, 10_000, 1_000)


@pytest.mark.parametrize(
    ("now", "symptoms"),
    [
        (Vitals(30, 1_000, 100), []),
        (Vitals(30, 400, 60), []),
        (Vitals(30, 0, 0), ["volume", "volume"]),
        (Vitals(30, 900, 0), ["volume"]),
        (Vitals(30, 5_000, 100), ["volume"]),
        (Vitals(30, 1_000, 100, 0, {"duplicate_impression": 300}), ["duplicates"]),
        (Vitals(30, 900, 100, 150), ["malformed"]),
        (Vitals(0.3, 0, 0), []),
    ],
)
def test_symptoms_of_a_source(now: Vitals, symptoms: list[str]) -> None:
    assert [each.split(":")[0] for each in baseline.symptoms(now, USUAL)] == symptoms
