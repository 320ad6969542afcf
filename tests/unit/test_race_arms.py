"""Splits, Thompson odds and interleaving: who answers, and that nobody moves without need."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.errors import InputError
from headrace.race.arms import CHAMPION, SLOTS, Arm, Race, allocate, draw, width
from headrace.race.interleave import preferences, team_draft
from headrace.race.thompson import odds

USERS = [f"u{number}" for number in range(3_000)]


def race(name: str = "spring", **shares: float) -> Race:
    arms = tuple(Arm(name=arm, version="v000002", share=share) for arm, share in shares.items())
    return Race(name=name, entity="user_id", arms=arms).with_slots(None)


def arms_of(found: Race) -> list[str]:
    return [draw(found, user, f"q{user}", {}).arm for user in USERS]


def test_shares_are_respected_and_logged_as_propensities():
    found = race(a=0.2, b=0.05)
    counts = Counter(arms_of(found))
    for arm, share in (("a", 0.2), ("b", 0.05), (CHAMPION, 0.75)):
        spread = (share * (1 - share) / len(USERS)) ** 0.5
        assert abs(counts[arm] / len(USERS) - share) < 4 * spread
    seen = {draw(found, user, "q", {}) for user in USERS}
    assert {(d.arm, round(d.propensity, 12)) for d in seen} == {
        ("a", 0.2), ("b", 0.05), (CHAMPION, 0.75),
    }  # fmt: skip


def test_an_entity_stays_with_its_arm_and_another_race_draws_anew():
    found = race(a=0.3)
    assert all(draw(found, user, "q1", {}) == draw(found, user, "q2", {}) for user in USERS[:200])
    one, other = arms_of(found), arms_of(race("autumn", a=0.3))
    both = sum(x == y == "a" for x, y in zip(one, other, strict=True)) / len(USERS)
    assert abs(both - 0.09) < 0.03  # independent
    assert draw(found, None, "q1", {}) == draw(found, None, "q1", {})
    assert draw(found, 7, "q", {}).arm in ("a", CHAMPION)


shares = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 3_000), max_size=3)


@settings(max_examples=40, deadline=None)
@given(shares, shares)
def test_slots_move_only_as_far_as_shares_change(before, after):
    held = allocate({}, {name: slots / SLOTS for name, slots in before.items()})
    new = allocate(held, {name: slots / SLOTS for name, slots in after.items()})
    assert {name: width(intervals) for name, intervals in new.items()} == after
    owned = {
        name: {slot for start, stop in intervals for slot in range(start, stop)}
        for name, intervals in new.items()
    }
    assert sum(map(len, owned.values())) == len(set().union(*owned.values()))  # no slot twice
    for name, intervals in held.items():
        had = {slot for start, stop in intervals for slot in range(start, stop)}
        kept = had & owned.get(name, set())
        assert len(kept) == min(len(had), after.get(name, 0))


def test_a_growing_share_keeps_its_users_and_takes_only_the_champions():
    small = race(a=0.1, b=0.2)
    big = race(a=0.4, b=0.2).with_slots(small)
    moves = Counter(zip(arms_of(small), arms_of(big), strict=True))
    assert set(moves) == {("a", "a"), ("b", "b"), (CHAMPION, CHAMPION), (CHAMPION, "a")}
    assert Race.model_validate_json(big.model_dump_json()) == big


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([{"name": "champion", "share": 0.1}], "every race has"),
        ([{"name": "a"}], "needs a share"),
        ([{"name": "a", "mode": "shadow", "share": 0.1}], "takes no share"),
        ([{"name": "a", "share": 0.1}, {"name": "a", "share": 0.1}], "declared twice"),
        ([{"name": "a", "share": 0.6}, {"name": "b", "share": 0.4}], "add up to 1"),
        ([{"name": "a", "mode": "interleave"}], "'split', 'shadow' or 'thompson'"),
        ([], "at least 1"),
        ([{"name": f"a{i}", "share": 0.1} for i in range(5)], "at most 4"),
    ],
)
def test_what_is_no_race_is_refused_with_the_reason(arms, message):
    with pytest.raises(ValidationError, match=message):
        Race.model_validate(
            {"name": "r", "entity": "u", "arms": [{"version": "v000001"} | arm for arm in arms]}
        )


def test_thompson_odds_are_those_of_sampling_and_are_logged():
    tallies = {CHAMPION: (50.0, 950.0), "a": (70.0, 930.0), "b": (1.0, 19.0)}
    found = odds(tallies, explore=1e-9)
    rng = np.random.default_rng(0)
    drawn = np.array([rng.beta(1 + c, 1 + n, 400_000) for c, n in tallies.values()])
    best = np.bincount(drawn.argmax(axis=0), minlength=3) / 400_000
    assert list(found.values()) == pytest.approx(best, abs=0.003)
    assert sum(found.values()) == pytest.approx(1)
    arms = tuple(Arm(name=name, version="v000002", mode="thompson") for name in ("a", "b"))
    raced = Race(name="r", entity="user_id", arms=arms)
    draws = [draw(raced, "u", f"q{i}", found) for i in range(4_000)]
    counts = Counter(d.arm for d in draws)
    for d in draws:
        assert d.propensity == pytest.approx(found[d.arm])
    for arm, p in found.items():
        assert abs(counts[arm] / 4_000 - p) < 4 * (p * (1 - p) / 4_000) ** 0.5 + 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 1_000_000)), min_size=1, max_size=5),
    st.floats(0.001, 0.1),
)
def test_odds_add_up_keep_their_floor_and_do_not_depend_on_order(counts, explore):
    tallies = {f"a{i}": (float(c), float(n)) for i, (c, n) in enumerate(counts)}
    found = odds(tallies, explore)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= explore * 0.999
    turned = odds(dict(reversed(tallies.items())), explore)
    assert turned == pytest.approx(found)


def test_odds_refuse_what_leaves_nothing_to_learn():
    with pytest.raises(InputError, match="leaves nothing"):
        odds({"a": (1, 1), "b": (1, 1)}, 0.5)
    with pytest.raises(InputError, match="below zero"):
        odds({"a": (-3, 1), "b": (1, 1)}, 0.1)


scores = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@settings(max_examples=60)
@given(scores, st.text(max_size=5))
def test_a_draft_is_a_permutation_and_teams_take_turns(pairs, key):
    left, right = (np.array(column) for column in zip(*pairs, strict=True))
    order, by_right = team_draft(left, right, key)
    assert sorted(order.tolist()) == list(range(len(pairs)))
    teams = by_right[order]
    for first in range(0, len(pairs) - 1, 2):
        assert teams[first] != teams[first + 1]
    again = team_draft(left, right, key)
    assert (again[0] == order).all()
    for place, candidate in enumerate(order):  # nobody better was left for who picked
        left_over = order[place:]
        picker = right if by_right[candidate] else left
        assert picker[candidate] == picker[left_over].max()


def test_clicks_prefer_the_better_ranking_and_nobody_between_equals():
    rng = np.random.default_rng(2)
    totals = {}
    for name, noise in (("equal", 1.0), ("worse", 3.0)):
        wins = []
        for request in range(600):
            p = rng.beta(1, 8, 12)
            shown = [np.log(p) + rng.normal(0, s, 12) for s in (noise, 1.0)]
            order, by_right = team_draft(*shown, key=str(request))
            seen = order[:5]
            clicks = rng.random(5) < p[seen]
            wins.extend(preferences(np.full(5, request), clicks, by_right[seen]))
        totals[name] = np.mean(wins), np.std(wins) / len(wins) ** 0.5
    assert abs(totals["equal"][0]) < 3.5 * totals["equal"][1]
    assert totals["worse"][0] > 3.5 * totals["worse"][1]
    assert preferences([1, 1, 2], [1, 0, 0], [True, False, True]).tolist() == [1.0, 0.0]
