"""Confidence sequences: at every look at once, and narrow enough to end a race."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InputError
from headrace.metrics import row_losses
from headrace.race.arms import Arm, Race, Rules
from headrace.race.sequential import Bound, bounded, ecdf_width, mixture
from headrace.race.verdict import Standing, by_request, decide, standing
from headrace.simulate.world import SimulatorConfig, World

RUNS = 240
LOOKS = [200, 300, 400, 600, 900, 1_300, 2_000, 3_000]
ROWS = 3  # of a request
WORLD = World(SimulatorConfig())


def race(arms: int = 1, **rules: float) -> Race:
    names = [f"b{i}" for i in range(arms)]
    return Race(
        name="r",
        entity="user_id",
        arms=tuple(Arm(name=n, version="v000002", share=0.1) for n in names),
        rules=Rules.model_validate({"min_requests": 200} | rules),
    )


def two_models(rng: np.random.Generator, requests: int, noise: float, extra: float) -> tuple:
    """Simulated requests of `ROWS` coupons, and the losses of two models of their clicks.

    Both miss the true log odds by `noise`, the second by `extra` more.
    """
    at_us = np.int64(470_000 * 3_600_000_000) + np.arange(requests)[:, None] * 100_000
    user, slot = rng.integers(0, 500, (requests, 1)), rng.integers(0, 120, (requests, ROWS))
    p = WORLD.p_item(user, slot, at_us)
    clicks = (rng.random(p.shape) < p).astype(float).ravel()
    logit = np.log(p / (1 - p)).ravel()
    missed = rng.normal(0, noise, (2, logit.size))
    missed[1] += rng.normal(0, extra, logit.size)
    losses = [row_losses(clicks, 1 / (1 + np.exp(-(logit + off)))) for off in missed]
    return np.repeat(np.arange(requests), ROWS), *losses


def first_end(losses: tuple, looked_at: Race) -> tuple[str, int]:
    """How a watched race ends: the first decision that is not to wait, and after which request."""
    requests, ours, theirs = losses
    for look in LOOKS:
        seen = requests < look
        held = {"b0": standing(looked_at, "b0", requests[seen], ours[seen], theirs[seen])}
        (decision,) = decide(looked_at, held)
        if decision.action != "wait":
            return decision.action, look
    return "wait", LOOKS[-1]


@pytest.mark.slow
def test_an_a_a_race_promotes_falsely_in_at_most_one_of_twenty_runs_however_often_it_is_watched():
    ends = [
        first_end(two_models(np.random.default_rng(seed), LOOKS[-1], 0.3, 0.0), race())[0]
        for seed in range(RUNS)
    ]
    false = ends.count("promote")
    assert false <= 0.05 * RUNS
    assert ends.count("drop") <= 0.05 * RUNS
    assert ends.count("wait") >= 0.9 * RUNS


def test_a_fixed_interval_that_is_watched_does_promote_falsely():
    """The same runs, judged by a t-test at each look: why the race does not do that."""
    false = 0
    for seed in range(RUNS // 2):
        requests, ours, theirs = two_models(np.random.default_rng(seed), LOOKS[-1], 0.3, 0.0)
        gain = by_request(requests, theirs - ours)
        false += any(gain[:n].mean() > 1.645 * gain[:n].std() / n**0.5 for n in LOOKS)
    assert false > 0.1 * RUNS // 2


def test_a_better_challenger_wins_and_a_worse_one_is_dropped():
    better, worse = [], []
    for seed in range(30):
        losses = two_models(np.random.default_rng(seed), LOOKS[-1], 0.3, 0.8)
        better.append(first_end(losses, race()))
        worse.append(first_end((losses[0], losses[2], losses[1]), race()))
    assert [end for end, _ in better].count("promote") >= 29
    assert np.median([look for _, look in better]) <= 900
    assert [end for end, _ in worse].count("drop") >= 29


def test_bounded_sequences_hold_at_every_look():
    outside = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        x = (rng.random(3_000) < 0.07).astype(float)
        outside += any(bounded(x[:n], 0.05).low > 0.07 for n in LOOKS)
    assert outside <= 0.05 * RUNS
    assert bounded((np.random.default_rng(1).random(3_000) < 0.3) * 1.0, 0.05).low > 0.25


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=60),
    st.floats(0.001, 0.2),
    st.floats(0.1, 100),
)
def test_bounds_enclose_the_mean_scale_and_mirror(values, alpha, scale) -> None:
    x = np.array(values)
    if x.std() < 1e-6:
        return
    at = mixture(x, alpha, tightest_at=30)
    assert at.low < at.mean < at.high
    bigger, mirrored = mixture(scale * x, alpha, 30), mixture(-x, alpha, 30)
    assert bigger.low == pytest.approx(scale * at.low, rel=1e-6)
    assert mirrored.low == pytest.approx(-at.high, rel=1e-6)
    assert mirrored.p_above == pytest.approx(at.p_below)
    inside = bounded(x, alpha, (-1.0, 1.0))
    assert -1 <= inside.low <= inside.high <= 1


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_p_value_and_bound_agree(seed) -> None:
    """An e-process above 1/alpha is what the bound inverts, up to a term of its closed form."""
    x = np.random.default_rng(seed).normal(0.1, 1, 500)
    at = mixture(x, 0.05)
    if at.low > 0:
        assert at.p_above <= 0.05
    if at.p_above > 0.06:
        assert at.low <= 0


def test_two_models_that_are_one_are_never_told_apart():
    same = mixture(np.zeros(1_000))
    assert (same.low, same.high, same.p_above) == (0.0, 0.0, 1.0)
    (decision,) = decide(race(), {"b0": Standing("b0", same, 5_000, 0.3, 0.3)})
    assert decision.action == "wait"


def test_an_empirical_distribution_stays_within_its_width():
    outside = 0
    for seed in range(RUNS // 2):
        x = np.random.default_rng(seed).random(2_000)
        for n in (50, 200, 700, 2_000):
            gap = np.abs(np.searchsorted(np.sort(x[:n]), x[:n], "right") / n - x[:n]).max()
            outside += bool(gap > ecdf_width(n, 0.05))
    assert outside <= 0.05 * RUNS / 2
    assert ecdf_width(0, 0.05) == 1.0
    assert ecdf_width(2_000, 0.05) < 0.08


def test_the_rules_ask_for_requests_split_alpha_and_promote_one():
    clear = Bound(5_000, 0.02, 0.01, 0.03, 1e-6, 1.0)
    few = Bound(50, 0.02, 0.01, 0.03, 1e-6, 1.0)
    held = {n: Standing(n, clear, 100, 0.3, 0.32) for n in ("b0", "b1")}
    held["b1"] = Standing("b1", Bound(5_000, 0.03, 0.02, 0.04, 1e-6, 1.0), 100, 0.29, 0.32)
    found = decide(race(2), held)
    assert [(d.arm, d.action) for d in found] == [("b0", "wait"), ("b1", "promote")]
    assert "b1 gains more" in found[0].reason
    assert "+0.03000" in found[1].reason
    (waits,) = decide(race(), {"b0": Standing("b0", few, 100, 0.3, 0.32)})
    assert (waits.action, waits.reason.split(";")[0]) == ("wait", "50 of 200 requests")
    (margin,) = decide(race(margin=0.05), {"b0": held["b0"]})
    assert margin.action == "wait"
    (late,) = decide(
        race(max_requests=5_000), {"b0": Standing("b0", Bound(5_000, 0, -1, 1, 1, 1), 1, 0.3, 0.3)}
    )
    assert late.action == "drop"
    losses = two_models(np.random.default_rng(1), 500, 0.3, 0.3)
    alone, among = standing(race(), "b0", *losses), standing(race(4), "b0", *losses)
    assert among.gain.low < alone.gain.low


def test_what_is_no_rate_or_out_of_span_is_refused():
    with pytest.raises(InputError, match=r"alpha=0\.7"):
        mixture([0.1], alpha=0.7)
    with pytest.raises(InputError, match="outside of"):
        bounded([1.5])
    assert np.isnan(mixture([]).low)
    assert np.isnan(bounded([]).low)
