"""What each arm would earn with all of the traffic, off-policy, from rows that arms answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.events import as_due
from headrace.race.arms import CHAMPION, Race
from headrace.race.estimate import Estimate, doubly_robust, ips, snips

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Earned:
    """An arm's click rate in three ways, each with its interval; rows of a request are one draw.

    `snips` is the one that people are shown: its weights cannot add up to more than there is. The
    reward model of `doubly_robust` is the arm's click rate in the other half of the requests, so it
    has not learned the rows that it is asked about.
    """

    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate


def earned_by(race: Race, rows: pa.Table) -> dict[str, Earned]:
    """By arm, the champion too; NaN for one that answered nothing."""
    drawn = as_due(rows.filter(pc.is_valid(rows["propensity"])))
    clicked = (drawn["label"].to_numpy() > 0).astype(np.float64)
    request = drawn["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    propensity, found = drawn["propensity"].to_numpy(), {}
    for name in (CHAMPION, *(arm.name for arm in race.arms)):
        mine = answered(drawn, name).astype(np.float64)
        given = clicked, propensity, mine
        normalised = robust = snips(*given, groups=request)
        if mine.any():  # the model of nothing is no estimate
            expected = _expected(clicked, mine / propensity, request)
            robust = doubly_robust(*given, expected, expected, groups=request)
        found[name] = Earned(ips(*given, groups=request), normalised, robust)
    return found


def answered(rows: pa.Table, arm: str) -> NDArray[np.bool_]:
    """Whether that arm answered a row, (n,)."""
    mine = pc.fill_null(pc.equal(rows["arm"], arm), False)
    return np.asarray(mine, dtype=np.bool_)


def _expected(clicked: Floats, weights: Floats, request: NDArray[np.int64]) -> Floats:
    """For each row the weighted click rate of the requests of the other half, 0 without one."""
    halves = request % 2
    rates = []
    for half in (0, 1):
        other = halves != half
        weight = float(weights[other].sum())
        rates.append(float((weights * clicked)[other].sum()) / weight if weight else 0.0)
    return np.asarray(rates)[halves]
