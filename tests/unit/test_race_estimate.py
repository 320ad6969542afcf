"""Off-policy estimates against what is known: a simulator's probabilities, a real logged bandit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InputError
from headrace.race.estimate import Estimate, doubly_robust, ips, snips
from headrace.simulate.world import SimulatorConfig, World

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", "/work/shared/data")) / "open_bandit"
HOUR_US = 3_600_000_000


class Logged:
    """Requests of the simulated campaign, one of twelve coupons shown to each by a softmax."""

    def __init__(self, seed: int, requests: int = 4_000) -> None:
        world, rng = World(SimulatorConfig(seed=7)), np.random.default_rng(seed)
        user = rng.integers(0, 500, (requests, 1))
        slot = np.argsort(rng.random((requests, 120)), axis=1)[:, :12]
        at_us = np.full((requests, 1), 470_000 * HOUR_US)
        self.p_click = world.p_item(user, slot, at_us)
        seen = np.log(self.p_click) + rng.normal(0, 0.7, self.p_click.shape)
        self.old = _softmax(0.5 * rng.normal(size=self.p_click.shape))
        self.new = _softmax(1.5 * seen)
        self.truth = float((self.new * self.p_click).sum(axis=1).mean())
        drawn = (rng.random((requests, 1)) > self.old.cumsum(axis=1)).sum(axis=1)
        self.row = np.arange(requests), np.minimum(drawn, 11)
        self.rewards = (rng.random(requests) < self.p_click[self.row]).astype(float)
        self.given = self.rewards, self.old[self.row], self.new[self.row]

    def robust(self, model: np.ndarray) -> Estimate:
        return doubly_robust(*self.given, model[self.row], (self.new * model).sum(axis=1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


def test_intervals_hold_the_simulators_truth_as_often_as_they_say() -> None:
    held = {"ips": 0, "snips": 0, "doubly robust": 0}
    errors: dict[str, list[float]] = {name: [] for name in held}
    for seed in range(120):
        logged = Logged(seed, 1_500)
        wrong = np.full_like(logged.p_click, 0.1)
        for name, found in (
            ("ips", ips(*logged.given)),
            ("snips", snips(*logged.given)),
            ("doubly robust", logged.robust(wrong)),
        ):
            held[name] += found.low <= logged.truth <= found.high
            errors[name].append((found.value - logged.truth) / found.error)
    for name, count in held.items():
        assert count >= 105, (name, count)  # 95% of 120 is 114; below 105 once in 3,000 times
        assert abs(np.mean(errors[name])) < 0.4, name  # no bias: 120 of them, error 0.09


def test_a_good_reward_model_narrows_the_interval_and_a_wrong_one_does_not_bias() -> None:
    logged = Logged(4)
    plain, good = ips(*logged.given), logged.robust(logged.p_click)
    assert good.error < 0.9 * plain.error
    for model in (logged.p_click, np.full_like(logged.p_click, 0.9)):
        found = logged.robust(model)
        assert abs(found.value - logged.truth) < 4 * found.error


def test_the_rows_own_policy_is_their_mean() -> None:
    rewards = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    same = np.full(5, 0.25)
    for found in (ips(rewards, same, same), snips(rewards, same, same)):
        assert found.value == pytest.approx(0.6)
        assert found.error == pytest.approx(rewards.std(ddof=1) / 5**0.5)
        assert (found.rows, found.effective_rows) == (5, pytest.approx(5.0))


rows = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.floats(0.05, 1), st.floats(0, 1)),
    min_size=3,
    max_size=40,
)


@given(rows)
def test_snips_stays_within_the_rewards_and_dr_without_weights_is_the_model(given_rows) -> None:
    r, p, t = (np.array(column) for column in zip(*given_rows, strict=True))
    if t.sum() > 1e-6:
        assert -1e-9 <= snips(r, p, t).value <= 1 + 1e-9
    model = np.linspace(0, 1, r.size)
    assert doubly_robust(r, p, 0 * t, model, model).value == pytest.approx(model.mean())
    assert doubly_robust(r, p, t, 0 * r, 0 * r).value == pytest.approx(ips(r, p, t).value)


@given(rows, st.integers(2, 5))
def test_a_row_told_several_times_is_no_more_evidence(given_rows, times) -> None:
    r, p, t = (np.array(column) for column in zip(*given_rows, strict=True))
    once = ips(r, p, t)
    again = ips(
        *(np.repeat(column, times) for column in (r, p, t)),
        groups=np.repeat(np.arange(r.size), times),
    )
    assert again.value == pytest.approx(once.value)
    assert again.error == pytest.approx(once.error)


def test_what_is_no_probability_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"propensity 0\.0"):
        ips([1.0], [0.0], [0.5])
    with pytest.raises(InputError, match=r"target 1\.5"):
        snips([1.0], [0.5], [1.5])
    with pytest.raises(InputError, match="one value for each row"):
        ips([1.0, 0.0], [0.5], [0.5])
    assert np.isnan(snips([1.0, 0.0], [0.5, 0.5], [0.0, 0.0]).value)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the Open Bandit sample is not at {DATA}")
@pytest.mark.parametrize("campaign", ["men", "women"])
def test_thompson_sampling_is_valued_from_rows_served_at_random_as_it_valued_itself(campaign):
    """`random` was served with known propensities; `bts` is what the judged policy really earned.

    The other way round fails, and the estimate says so: Thompson sampling hardly serves what it
    thinks bad, and two of its 10,000 rows carry all the weight of a uniform policy.
    """
    columns = ["item_id", "position", "click", "propensity_score"]
    bts, random = (
        pd.read_csv(DATA / policy / campaign / f"{campaign}.csv.gz", usecols=columns)
        for policy in ("bts", "random")
    )
    drawn = bts.groupby(["position", "item_id"]).size() / bts.groupby("position").size()
    targets = random.join(drawn.rename("t"), on=["position", "item_id"])["t"].fillna(0.0)
    rows = random["click"], random["propensity_score"], targets
    model = np.full(len(random), random["click"].mean())
    truth = ips(bts["click"], np.ones(len(bts)), np.ones(len(bts)))
    for found in (ips(*rows), snips(*rows), doubly_robust(*rows, model, model)):
        assert found.low < truth.value < found.high
        assert found.error < 2 * truth.error
        assert 2_500 < found.effective_rows < 4_000
    if campaign == "women":
        uniform = np.full(len(bts), 1 / random["item_id"].nunique())
        assert snips(bts["click"], bts["propensity_score"], uniform).effective_rows < 3
