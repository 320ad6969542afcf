"""Each way to learn late engagements: its weights, its bias or lack of it, exact continuation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.declaration import ModelSpec
from headrace.model import Model
from headrace.model.delta import same_bits
from headrace.model.step import Graph

SPEC = ModelSpec(
    family="ftrl", categorical=("item",), table_bits=8, batch_size=64, ftrl_alpha=0.1, ftrl_l2=0.0
)
CLICK_RATE = 0.2


def stream(rows: int, late: float, seed: int = 0, first: bool = False) -> pa.Table:
    """One item, clicked at `CLICK_RATE`; a share of the clicks comes late, 100 rows afterwards.

    `first`: every click comes late, as when each impression is emitted as a negative at once.
    """
    draw = np.random.default_rng(seed)
    facts: list[tuple[int, int, int]] = []
    for row in range(rows):
        clicked = draw.random() < CLICK_RATE
        if clicked and (first or draw.random() < late):
            facts += [(row, 0, 1), (row + 100, 1, -1)]
        else:
            facts.append((row, int(clicked), 1 - int(clicked)))
    _, positive, negative = np.array(sorted(facts, key=lambda fact: fact[0])).T
    return pa.table(
        {
            "item": np.zeros(positive.size, np.int64),
            "positive_weight": positive.astype(np.float32),
            "negative_weight": negative.astype(np.float32),
        }
    )


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_weights_are_those_of_the_papers(share: float) -> None:
    p = np.linspace(0.01, 0.99, 9, dtype=np.float32)
    logit, one = np.log(p / (1 - p)), np.ones_like(p)
    positive, negative = Graph._reweighted(one, one, logit, np.float32(share))
    late = share * p
    np.testing.assert_allclose(positive, 1 + late, rtol=1e-5)
    np.testing.assert_allclose(negative, (1 + late) * (1 - p) / (1 - p + late), rtol=1e-5)
    if share == 1.0:  # fake-negative weighting
        np.testing.assert_allclose(negative, (1 - p) * (1 + p), rtol=1e-5)
    for extreme in (-200.0, 200.0):
        weights = Graph._reweighted(one, one, np.full_like(p, extreme), np.float32(share))
        assert np.isfinite(weights).all()
    _, corrected = Graph._reweighted(one, -one, logit, np.float32(share))
    assert not np.any(corrected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feedback", "expected"),
    [("correct", 0.2), ("esdfm", 0.2), ("fnw", 0.2), ("naive", 0.2 / 1.12)],
)
def test_the_rate_is_learned_without_bias_unless_naive(feedback: Any, expected: float) -> None:
    model = Model(SPEC, 7, feedback)
    rows = stream(20_000, late=0.6, first=feedback == "fnw")
    for _ in range(2):
        model.learn(rows)
    assert model.predict(rows.slice(0, 1))[0] == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("feedback", ["correct", "naive", "fnw", "esdfm"])
@pytest.mark.parametrize("family", ["ftrl", "ftrl_deep"])
def test_continuing_equals_never_having_stopped(feedback: Any, family: str) -> None:
    spec = SPEC.model_copy(update={"family": family, "embedding_dim": 2, "hidden": (4,)})
    first, second = stream(150, late=0.5, seed=1), stream(150, late=0.5, seed=2)
    whole, resumed = Model(spec, 7, feedback), Model(spec, 7, feedback)
    whole.learn(first)
    resumed.learn(second)  # whatever it was before, the state replaces it
    resumed.load_state(whole.state())
    assert resumed.learn(second) == whole.learn(second)
    assert same_bits(resumed.state(), whole.state())


def test_a_full_training_hands_its_state_on_to_any_feedback_and_to_the_server() -> None:
    full = Model(SPEC, 7)
    full.learn(stream(300, late=0.0))
    increment = Model(SPEC, 7, "esdfm")
    increment.learn(stream(300, late=0.5))
    increment.load_state(full.state())
    assert not increment.state()["late"].any()
    increment.learn(stream(300, late=0.5))
    full.load_state(increment.state())
    row = stream(1, late=0.0)
    assert full.predict(row) == increment.predict(row)
