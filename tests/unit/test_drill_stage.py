"""The stage of the drills: the same traffic whoever looks, and poisons that do what they say."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from headrace.declaration import LineSpec
from headrace.drill.campaign import Campaign
from headrace.drill.lines import DRILLS
from headrace.drill.poison import CLEAN, Poison
from headrace.drill.stage import Seen
from headrace.simulate.world import SimulatorConfig
from tests.unit.test_quality import spec

__all__ = ["spec"]

START_US = 1_750_000_000_000_000


def played(spec: LineSpec, poison: Poison = CLEAN, seconds: int = 45) -> Seen:
    stage = Campaign(spec, SimulatorConfig(seed=3), START_US)
    stage.play(10, None, "bootstrap")
    return stage.play(seconds, None, "bootstrap", poison)


def named(name: str) -> Poison:
    return next(poison for poison in DRILLS["coupons"].poisons if poison.name == name)


def test_the_same_seed_gives_the_same_samples(spec: LineSpec) -> None:
    clean = played(spec)
    told = [seen.samples.drop_columns("score") for seen in (clean, played(spec))]  # NaN, all
    assert told[0].equals(told[1])
    rate = pc.mean(clean.samples["label"]).as_py()
    assert 0.03 < rate < 0.25
    assert clean.vitals.refused == 0
    assert clean.vitals.fates == {}
    assert clean.happened.size == clean.scores.size > 1_000


def test_truth_does_not_depend_on_what_is_reported(spec: LineSpec) -> None:
    clean = played(spec)
    for name in ("flipped labels", "clicks stop", "duplicate burst", "schema change"):
        np.testing.assert_array_equal(played(spec, named(name)).happened, clean.happened)


@pytest.mark.parametrize("name", ["timezone slip", "clock skew"])
def test_wrong_clocks_lose_labels(spec: LineSpec, name: str) -> None:
    seen = played(spec, named(name))
    assert seen.vitals.lost_share > 0.3
    assert set(seen.vitals.fates) == {"too_late"}


def test_what_the_collector_refuses_is_counted(spec: LineSpec) -> None:
    seen = played(spec, named("schema change"))
    assert seen.vitals.refused == seen.happened.size
    assert played(spec, named("source stop")).vitals.refused == 0


def test_duplicates_change_no_sample(spec: LineSpec) -> None:
    clean, twice = played(spec), played(spec, named("duplicate burst"))
    assert twice.vitals.fates["duplicate_impression"] == 4 * clean.happened.size
    keys = ["impression_id", "revision", "label"]
    assert twice.samples.select(keys).equals(clean.samples.select(keys))


def test_bots_click_all_and_are_no_people(spec: LineSpec) -> None:
    seen = played(spec, named("bot clicks 5%"), 90)
    users = np.array(seen.samples["user_id"].to_pylist())
    bots = np.char.startswith(users, "bot")
    assert 0.01 < bots.mean() < 0.12
    labels = seen.samples["label"].to_numpy()
    assert labels[bots].all()
    assert seen.happened.size < played(spec, CLEAN, 90).happened.size
