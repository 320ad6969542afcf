"""Served, frozen and perfect rankings of the same candidates, judged by the true probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.metrics import auc, calibration, log_loss, row_losses
from headrace.report.freshness import micros
from headrace.simulate.world import EXAMINATION

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """One row for each candidate that the truth and the served log both know.

    `position` is -1 where the candidate was not shown; its `p_click` is NaN then. `blind` is what
    a perfect model that cannot see the position would answer: `p_item` times the mean
    examination of the shown places.
    """

    request: Ints
    position: Ints
    p_item: Floats
    p_click: Floats
    clicked: NDArray[np.bool_]
    poisoned: NDArray[np.bool_]
    sent_us: Ints
    served: Floats
    frozen: Floats

    @property
    def shown(self) -> NDArray[np.bool_]:
        return self.position >= 0

    @property
    def blind(self) -> Floats:
        shown = self.position[self.shown]
        return self.p_item * (EXAMINATION[shown].mean() if len(shown) else 1.0)


def match_served(truth: pa.Table, served: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of both that share an impression id, side by side in the truth's order."""
    where = pc.index_in(truth["impression_id"], value_set=served["impression_id"])
    both = pc.is_valid(where)
    return truth.filter(both), served.take(where.filter(both))


def scored_rows(truth: pa.Table, served: pa.Table, frozen: Floats) -> Scored:
    """Arrays of matched rows (`match_served`); `frozen` is the frozen base's score, shape (n,)."""
    codes = pc.dictionary_encode(truth["request_id"]).combine_chunks()
    request = codes.indices.to_numpy() if truth.num_rows else np.zeros(0, dtype=np.int64)
    return Scored(
        request=np.asarray(request, dtype=np.int64),
        position=truth["position"].to_numpy(),
        p_item=truth["p_item"].to_numpy(),
        p_click=pc.fill_null(truth["p_click"], float("nan")).to_numpy(),
        clicked=np.asarray(truth["clicked"], dtype=bool),
        poisoned=np.asarray(truth["poisoned"], dtype=bool),
        sent_us=micros(truth["sent_at"]),
        served=served["score"].to_numpy(),
        frozen=frozen,
    )


def expected_clicks(rows: Scored, score: Floats) -> tuple[Floats, Floats]:
    """Clicks to expect, and places shown, for each request, had `score` alone ranked it.

    As many candidates as were really shown take the places from the top; ties keep their order.
    """
    order = np.lexsort((-score, rows.request))
    request = rows.request[order]
    requests = int(request.max()) + 1 if len(request) else 0
    first = np.searchsorted(request, np.arange(requests))
    rank = np.arange(len(request)) - first[request]
    shown = np.bincount(rows.request, weights=rows.shown, minlength=requests).astype(np.float64)
    placed = rank < shown[request]
    seen = EXAMINATION[np.minimum(rank, len(EXAMINATION) - 1)]
    worth = np.where(placed, rows.p_item[order] * seen, 0.0)
    return np.bincount(request, weights=worth, minlength=requests).astype(np.float64), shown


def click_rates(rows: Scored, seed: int = 0) -> dict[str, Any]:
    """Expected click rates of the three rankings of the same candidates, and the uplift.

    `served` and `frozen_base_estimate` rank by score alone, `oracle` by the true probability;
    `observed` is what really happened, exploration included. The interval of the uplift is a
    95% bootstrap over requests.
    """
    served, shown = expected_clicks(rows, rows.served)
    frozen, _ = expected_clicks(rows, rows.frozen)
    oracle, _ = expected_clicks(rows, rows.p_item)
    places = float(shown.sum())
    if not places:
        return {"served": None, "frozen_base_estimate": None, "oracle": None, "uplift": None}
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, len(served), (500, len(served)))
    low, high = np.quantile(served[pick].sum(1) / frozen[pick].sum(1) - 1, [0.025, 0.975])
    return {
        "served": float(served.sum() / places),
        "frozen_base_estimate": float(frozen.sum() / places),
        "oracle": float(oracle.sum() / places),
        "observed": float(rows.clicked[rows.shown].mean()),
        "uplift": float(served.sum() / frozen.sum() - 1),
        "uplift_low": float(low),
        "uplift_high": float(high),
    }


def log_losses(rows: Scored) -> dict[str, Any]:
    """Log loss against the true clicks on the shown impressions, in nats.

    `oracle` knows the position too; `oracle_without_position` is the best that served scores,
    which are given before positions exist, could reach.
    """
    shown = rows.shown
    if not shown.any():
        return {"served": None, "frozen_base": None, "oracle": None}
    labels = rows.clicked[shown]
    return {
        "served": log_loss(labels, rows.served[shown]),
        "frozen_base": log_loss(labels, rows.frozen[shown]),
        "oracle": log_loss(labels, rows.p_click[shown]),
        "oracle_without_position": log_loss(labels, rows.blind[shown]),
        "rows": int(shown.sum()),
        "auc_served": _number(auc(labels, rows.served[shown])),
        "auc_frozen_base": _number(auc(labels, rows.frozen[shown])),
        "auc_oracle": _number(auc(labels, rows.p_click[shown])),
        "calibration_served": _number(calibration(labels, rows.served[shown])),
    }


def rolling(rows: Scored, step_s: int = 10, window_s: int = 30) -> dict[str, list[float]]:
    """Trailing means every `step_s` seconds over the last `window_s`; times in µs."""
    if not rows.shown.any():
        return {name: [] for name in ("at_us", *_SERIES)}
    losses = _shown_losses(rows)
    clicks = {
        "click_served": expected_clicks(rows, rows.served),
        "click_frozen": expected_clicks(rows, rows.frozen),
        "click_oracle": expected_clicks(rows, rows.p_item),
    }
    asked_us = np.zeros(len(clicks["click_served"][0]), dtype=np.int64)
    asked_us[rows.request] = rows.sent_us
    shown_us = rows.sent_us[rows.shown]
    series: dict[str, list[float]] = {name: [] for name in ("at_us", *_SERIES)}
    step, window = step_s * 1_000_000, window_s * 1_000_000
    for end in range(int(shown_us.min()) + window, int(shown_us.max()) + step, step):
        inside = (shown_us >= end - window) & (shown_us < end)
        asked = (asked_us >= end - window) & (asked_us < end)
        if inside.sum() < 50:
            continue
        series["at_us"].append(float(end))
        for name, values in losses.items():
            series[name].append(float(values[inside].mean()))
        for name, (expected, places) in clicks.items():
            series[name].append(float(expected[asked].sum() / places[asked].sum()))
    return series


_SERIES = (
    "loss_served",
    "loss_frozen",
    "loss_oracle",
    "click_served",
    "click_frozen",
    "click_oracle",
)


def _shown_losses(rows: Scored) -> dict[str, Floats]:
    shown = rows.shown
    labels = rows.clicked[shown]
    return {
        "loss_served": row_losses(labels, rows.served[shown]),
        "loss_frozen": row_losses(labels, rows.frozen[shown]),
        "loss_oracle": row_losses(labels, rows.p_click[shown]),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: a figure that the rows cannot give is null."""
    return None if np.isnan(value) else float(value)
