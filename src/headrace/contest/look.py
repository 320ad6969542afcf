"""What a look at a race saw, and the figures in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import metrics
from headrace.contest.earnings import Earned, answered
from headrace.declaration import LineSpec
from headrace.events import as_due
from headrace.race.arms import CHAMPION, Race
from headrace.race.verdict import Decision, Standing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """What a look at a race saw: closed rows of ticks [from_tick, to_tick), judged.

    `open_rows` wait for their attribution window to close. `clicks`: (clicks, rows without) of
    the rows that each arm answered itself; `earned`: the click rate that it would have had with
    all of the traffic, from those rows and the propensities with which they were drawn.
    """

    race: Race
    generation: int
    since_us: int
    from_tick: int
    to_tick: int
    rows: int
    open_rows: int
    standings: dict[str, Standing]
    decisions: list[Decision]
    calibrations: dict[str, tuple[float, float, float]]
    clicks: dict[str, tuple[float, float]]
    earned: dict[str, Earned]


def closed_rows(spec: LineSpec, rows: pa.Table) -> NDArray[np.bool_]:
    """Rows whose attribution window had ended when the newest row was sampled, (n,)."""
    if not rows.num_rows:
        return np.zeros(0, dtype=np.bool_)
    now = int(pc.max(rows["emitted_at"]).cast(pa.int64()).as_py())
    shown = rows["event_at"].cast(pa.int64()).to_numpy()
    closed: NDArray[np.bool_] = shown + spec.label.attribution_window <= now
    return closed


def calibration_of(rows: pa.Table, scores: Floats) -> tuple[float, float, float]:
    """Calibration of the rows that have a score, with the range that they allow."""
    known = np.isfinite(scores)
    labels = rows["label"].to_numpy()[known]
    low, high = metrics.calibration_interval(labels, scores[known])
    return metrics.calibration(labels, scores[known]), low, high


def clicks_of(race: Race, rows: pa.Table) -> dict[str, tuple[float, float]]:
    """(clicks, rows without) by the arm that answered, as the served log names it.

    An arm answers only for what its own version said: not for those that stood in for it.
    """
    rows = as_due(rows)
    clicked = rows["label"].to_numpy() > 0
    found = {}
    for name in (CHAMPION, *(arm.name for arm in race.arms)):
        mine = answered(rows, name)
        found[name] = (float((clicked & mine).sum()), float((~clicked & mine).sum()))
    return found


def summary(look: Look) -> dict[str, Any]:
    """A look as a server shows it to people, JSON-ready: figures that are not known are None."""
    decided = {decision.arm: decision for decision in look.decisions}
    arms = {}
    for name, stands in look.standings.items():
        gain, decision = stands.gain, decided[name]
        arms[name] = {
            "gain": _figure(gain.mean),
            "low": _figure(gain.low),
            "high": _figure(gain.high),
            "requests": gain.n,
            "rows": stands.rows,
            "logloss": _figure(stands.logloss),
            "champion_logloss": _figure(stands.champion_logloss),
            "decision": decision.action,
            "reason": decision.reason,
        }
    earned = {
        name: {
            "rate": _figure(one.snips.value),
            "low": _figure(one.snips.low),
            "high": _figure(one.snips.high),
        }
        for name, one in look.earned.items()
    }
    rules = {"min_requests": look.race.rules.min_requests, "margin": look.race.rules.margin}
    return {
        "rows": look.rows,
        "open_rows": look.open_rows,
        "rules": rules,
        "arms": arms,
        "earned": earned,
    }


def _figure(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
