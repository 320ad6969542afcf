"""Races on the simulator: how often an equal model is promoted, how soon a better one wins.

Two models miss the true log odds of the simulated campaign by noise of their own. A race of equals
(A/A) is watched every 100 requests and must promote in one of twenty runs at most; the peer is
the t-test of the same observations at the same looks, which is what a dashboard with a fixed
interval does. Then the champion is made worse step by step.
"""

from __future__ import annotations

import statistics
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench._measure import at_least, at_most
from headrace.metrics import row_losses
from headrace.race.sequential import mixture
from headrace.race.verdict import by_request
from headrace.simulate.world import SimulatorConfig, World

Floats = NDArray[np.float64]

ALPHA: Final = 0.05
REQUESTS: Final = 5_000
LOOKS: Final = range(300, REQUESTS + 1, 100)
SHOWN: Final = 5
NOISE: Final = 0.3
WORSE: Final = (0.5, 0.8, 1.2)
T_ONE_SIDED: Final = 1.645


def run(*, quick: bool = False) -> dict[str, Any]:
    """1,000 races of equals and 100 for each margin (20 and 4 when quick), all seeded."""
    equals, wins = (20, 4) if quick else (1_000, 100)
    world = World(SimulatorConfig())
    ends = [_ends(_gains(world, seed, 0.0)) for seed in range(equals)]
    false = sum(race is not None for race, _ in ends) / equals
    peer = sum(fixed is not None for _, fixed in ends) / equals
    rows = [["0", f"{false:.1%}", "-", f"{peer:.1%}"]]
    claims = [at_most("equal models promoted, over all looks", false, "share", ALPHA)]
    for worse in WORSE:
        gains = [_gains(world, seed, worse) for seed in range(wins)]
        gain = float(np.mean([each.mean() for each in gains]))
        found = [race for race, _ in map(_ends, gains) if race is not None]
        won = len(found) / wins
        soon = f"{statistics.median(found):,.0f}" if found else "-"
        rows.append([f"{gain:.4f}", f"{won:.1%}", soon, "-"])
        name = f"challenger better by {gain:.4f} nats a row promoted, median after {soon} requests"
        claims.append(at_least(name, won, "share", 0.95))
    return {
        "what": "races on the simulator, watched every 100 requests of 5 rows",
        "rows": REQUESTS * SHOWN,
        "runs": {"equal": equals, "each margin": wins},
        "peers": {"one-sided t-test at each look": f"alpha {ALPHA}"},
        "table": {
            "heads": ["gain, nats a row", "promoted", "median requests", "t-test promoted"],
            "rows": rows,
        },
        "claims": claims,
    }


def _gains(world: World, seed: int, worse: float) -> Floats:
    """Champion's log loss minus the challenger's by request, (REQUESTS,)."""
    rng = np.random.default_rng(seed)
    at_us = np.int64(470_000 * 3_600_000_000) + np.arange(REQUESTS)[:, None] * 100_000
    user, slot = rng.integers(0, 500, (REQUESTS, 1)), rng.integers(0, 120, (REQUESTS, SHOWN))
    p = world.p_item(user, slot, at_us)
    clicks = (rng.random(p.shape) < p).astype(np.float64).ravel()
    logit = np.log(p / (1 - p)).ravel()
    missed = rng.normal(0, NOISE, (2, logit.size))
    missed[1] += rng.normal(0, worse, logit.size)
    challenger, champion = (row_losses(clicks, 1 / (1 + np.exp(-(logit + off)))) for off in missed)
    return by_request(np.repeat(np.arange(REQUESTS), SHOWN), champion - challenger)


def _ends(gains: Floats) -> tuple[int | None, int | None]:
    """After how many requests the race promotes, and the peer; None where it never does."""
    race = next((n for n in LOOKS if mixture(gains[:n], ALPHA, 1_200).low > 0), None)
    fixed = next(
        (n for n in LOOKS if gains[:n].mean() > T_ONE_SIDED * gains[:n].std(ddof=1) / n**0.5), None
    )
    return race, fixed
