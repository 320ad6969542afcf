"""Who wins a race: bounds in, decisions with reasons out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.race.arms import Race, Rules
from headrace.race.sequential import Bound, mixture

Action = Literal["promote", "drop", "wait"]


@dataclass(frozen=True)
class Standing:
    """How a challenger stands against the champion on the same rows.

    `gain`: champion's log loss minus the challenger's, in nats a row, request by request: above 0
    the challenger is better.
    """

    arm: str
    gain: Bound
    rows: int
    logloss: float
    champion_logloss: float


@dataclass(frozen=True)
class Decision:
    """What the rules say of an arm, and why."""

    arm: str
    action: Action
    reason: str


def standing(
    race: Race,
    arm: str,
    requests: ArrayLike,
    losses: ArrayLike,
    of_champion: ArrayLike,
) -> Standing:
    """The bound of a challenger's gain, at `alpha` shared among the race's arms (Bonferroni).

    requests: (n,) codes that rise in the order in which the requests' labels became final. losses,
    of_champion: (n,) log losses of the same rows by the two.
    """
    ours, theirs = np.asarray(losses, np.float64), np.asarray(of_champion, np.float64)
    gain = mixture(
        by_request(requests, theirs - ours),
        race.rules.alpha / len(race.arms),
        _tightest(race.rules),
    )
    return Standing(arm, gain, ours.size, _mean(ours), _mean(theirs))


def by_request(requests: ArrayLike, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values of each request, in rising order of its code: independent units."""
    _, code, count = np.unique(np.asarray(requests), return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = np.bincount(code, weights=values) / count
    return means


def decide(race: Race, standings: Mapping[str, Standing]) -> list[Decision]:
    """One decision for each challenger with a standing; at most one, the best, is promoted."""
    found = [_of(race.rules, standings[arm.name]) for arm in race.arms if arm.name in standings]
    winners = [d.arm for d in found if d.action == "promote"]
    if len(winners) < 2:
        return found
    best = max(winners, key=lambda name: standings[name].gain.mean)
    return [
        d if d.arm == best or d.action != "promote"
        else Decision(d.arm, "wait", f"{d.reason}; but {best} gains more")
        for d in found
    ]  # fmt: skip


def _of(rules: Rules, standing: Standing) -> Decision:
    arm, gain = standing.arm, standing.gain
    told = (
        f"log loss {standing.logloss:.5f} against {standing.champion_logloss:.5f} on "
        f"{standing.rows} rows of {gain.n} requests: gain {gain.mean:+.5f}, "
        f"at every look between {gain.low:+.5f} and {gain.high:+.5f}"
    )
    if gain.n < rules.min_requests:
        few = f"{gain.n} of {rules.min_requests} requests"
        return Decision(arm, "wait", f"{few}; {told}" if gain.n > 1 else few)
    if gain.low > rules.margin:
        return Decision(arm, "promote", f"better by more than {rules.margin:g}: {told}")
    if gain.high < -rules.tolerance:
        return Decision(arm, "drop", f"worse by more than {rules.tolerance:g}: {told}")
    if gain.n >= rules.max_requests:
        return Decision(arm, "drop", f"undecided at max_requests: {told}")
    return Decision(arm, "wait", f"undecided: {told}")


def _tightest(rules: Rules) -> int:
    return max(rules.min_requests * 4, 1_000)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
