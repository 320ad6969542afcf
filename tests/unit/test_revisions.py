"""Fewer negatives without a bias, and labels that are not judged too early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.declaration import LineSpec
from headrace.labels.revisions import thin_negatives, unaccompanied, unsettled

LINES = Path(__file__).parents[2] / "lines"


def line(**label: Any) -> LineSpec:
    raw = yaml.safe_load((LINES / "coupons.yaml").read_text())
    raw["label"] |= label
    return LineSpec.model_validate(raw)


def stream(ids: np.ndarray, kinds: np.ndarray) -> pa.Table:
    """One impression an id and second. Kind 0: negative; 1: positive; 2: negative, and 5.5 s
    later a correction.
    """
    order = np.concatenate([np.arange(ids.size), np.flatnonzero(kinds == 2)])
    corrects = np.arange(order.size) >= ids.size
    emitted_s = order + 5.5 * corrects
    by_time = np.argsort(emitted_s, kind="stable")
    order, corrects, emitted_s = order[by_time], corrects[by_time], emitted_s[by_time]
    label = corrects | (kinds[order] == 1)
    return pa.table(
        {
            "impression_id": [f"i{number}" for number in ids[order].tolist()],
            "impression_offset": order,
            "item": np.zeros(order.size, np.int64),
            "revision": corrects.astype(np.int32),
            "label": label.astype(np.int8),
            "positive_weight": label.astype(np.float32),
            "negative_weight": np.where(corrects, -1, 1 - label).astype(np.float32),
            "served_at": pa.array(order * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
            "emitted_at": pa.array((emitted_s * 1e6).astype(np.int64)).cast(
                pa.timestamp("us", tz="UTC")
            ),
        }
    )


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 10**9), st.integers(0, 2), max_size=60),
    st.floats(0.01, 1),
    st.integers(0, 2**63),
    st.integers(0, 60),
)
def test_a_correction_takes_back_exactly_what_was_learned(kinds, rate, seed, cut):
    spec = line(negative_rate=rate).model_copy(update={"seed": seed})
    whole = stream(np.array(list(kinds), np.int64), np.array(list(kinds.values()), np.int64))
    kept = thin_negatives(spec, whole)
    split = [thin_negatives(spec, part) for part in (whole.slice(0, cut), whole.slice(cut))]
    assert pa.concat_tables(split).combine_chunks().equals(kept.combine_chunks())
    net: dict[str, tuple[float, float]] = {}
    for name, positive, negative in zip(
        *(kept[c].to_pylist() for c in ("impression_id", "positive_weight", "negative_weight")),
        strict=True,
    ):
        plus, minus = net.get(name, (0.0, 0.0))
        net[name] = (plus + positive, minus + negative)
    for number, kind in kinds.items():
        found = net.get(f"i{number}")
        if kind:
            assert found == (1, 0)
        else:
            assert found in (None, (0, np.float32(1) / np.float32(rate)))


def test_the_rate_is_kept_and_follows_the_seed():
    ids = np.arange(100_000)
    table = stream(ids, np.zeros(ids.size))
    kept = [
        set(thin_negatives(line(negative_rate=0.1).model_copy(update={"seed": s}), table)
            ["impression_id"].to_pylist())
        for s in (0, 1)
    ]  # fmt: skip
    assert [len(one) for one in kept] == pytest.approx([10_000, 10_000], rel=0.04)
    assert len(kept[0] & kept[1]) == pytest.approx(1_000, rel=0.2)
    assert thin_negatives(line(), table) is table


@pytest.mark.parametrize("feedback", ["correct", "naive", "esdfm", "fnw"])
def test_predictions_stay_calibrated_on_a_tenth_of_the_negatives(feedback):
    from headrace.declaration import ModelSpec
    from headrace.model import Model

    spec = line(negative_rate=0.1, delayed_feedback=feedback)
    draw = np.random.default_rng(3)
    clicked = draw.random(60_000) < 0.05
    late = (draw.random(60_000) < 0.3) | (feedback == "fnw")
    whole = stream(np.arange(60_000), clicked * (1 + late))
    rows = thin_negatives(spec, whole)
    model = Model(
        ModelSpec(family="ftrl", categorical=("item",), table_bits=8, ftrl_l2=0), 7, feedback
    )
    for _ in range(3):
        model.learn(rows)
    assert rows.num_rows < 0.2 * whole.num_rows
    expected = clicked.mean()
    if feedback == "naive":
        expected /= 1 + (clicked & late).mean()
    assert model.predict(rows.slice(0, 1))[0] == pytest.approx(expected, rel=0.06)


def test_where_all_are_negatives_first_young_ones_are_not_judged():
    table = stream(np.arange(20), np.where(np.arange(20) == 1, 2, 0))
    assert not unsettled(line(), table).any()
    young = unsettled(line(delayed_feedback="fnw", provisional_after="10s"), table)
    offsets = table["impression_offset"].to_numpy()
    assert offsets[young].tolist() == list(range(10, 20))
    assert offsets[~young].tolist() == [0, 1, 2, 3, 4, 5, 6, 1, 7, 8, 9]


def test_clicks_of_the_first_seconds_of_traffic_have_no_negatives_beside_them():
    second = 1_000_000
    # a click comes 1 s after its impression, a negative after 10; traffic pauses for 40 s
    served = np.concatenate([np.arange(30), np.arange(70, 100)]) * second
    clicked = np.arange(served.size) % 3 == 0
    emitted = served + np.where(clicked, 1, 10) * second
    table = pa.table({"served_at": served, "emitted_at": emitted}).take(np.argsort(emitted))
    table = table.append_column("label", pa.array(clicked[np.argsort(emitted)]))
    early = unaccompanied(line(provisional_after="10s"), table)
    at_s = table["emitted_at"].to_numpy() // second
    assert at_s[early].tolist() == [1, 4, 7, 71, 74, 77]
    assert table["label"].to_numpy(zero_copy_only=False)[early].all()
    later = table.filter(pa.array(at_s >= 20)).slice(0, 16)  # a window begins in full traffic
    assert not unaccompanied(line(provisional_after="10s"), later).any()
    negatives_first = line(delayed_feedback="fnw", provisional_after="10s")
    assert not unaccompanied(negatives_first, table).any()
