"""Which lines can be drilled, and how: what each poison takes of a line, and how long a window is.

A poison that means nothing to a line is not among its own: nobody clicks on a flight, so no bot
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.declaration import LineSpec
from headrace.drill.campaign import Campaign
from headrace.drill.poison import (
    Poison,
    bots,
    flipped,
    leaked,
    missing,
    no_outcomes,
    redated,
    renamed,
    repeated,
    scaled,
    silence,
    stuck,
)
from headrace.drill.recorded import Recorded
from headrace.drill.stage import Stage
from headrace.errors import InputError
from headrace.simulate.world import SECOND_US, SimulatorConfig
from headrace.source import read_events

HOUR_US: Final = 3_600 * SECOND_US
START_US: Final = 1_750_000_000_000_000


@dataclass(frozen=True)
class Drill:
    """How a line is drilled: a base model of `history_s`, then windows of `window_s`, of which
    `warm_windows` pass before anything is poisoned; those of a recording begin at `begins_h`.
    `guard_first` is that of the `Course`.
    """

    window_s: int
    history_s: int
    warm_windows: int
    poisons: tuple[Poison, ...]
    begins_h: int = 0
    guard_first: bool = False


_COUPONS: Final = (
    Poison("flipped labels", "clicks for what was not clicked", outcomes=flipped),
    Poison("bot clicks 1%", "1% of requests are of accounts that click all",
           **bots(0.01, "user_id")),
    Poison("bot clicks 5%", "5% of requests are of accounts that click all",
           **bots(0.05, "user_id")),
    Poison("stuck feature", "every discount is 0.3", asked=stuck("discount", 0.3)),
    Poison("unit change x100", "discounts in percent", asked=scaled("discount", 100)),
    Poison("timezone slip", "clicks dated an hour ahead", reported=redated(HOUR_US)),
    Poison("null burst", "60% of the categories are missing", asked=missing("category", 0.6)),
    Poison("duplicate burst", "every event comes five times", reported=repeated(5)),
    Poison("clicks stop", "no click is reported any more", reported=no_outcomes),
    Poison("source stop", "nothing is reported any more", reported=silence),
    Poison("clock skew", "half of the clicks dated a minute back",
           reported=redated(-60 * SECOND_US, 0.5)),
    Poison("schema change", "category is called kind", reported=renamed("category", "kind")),
    Poison("label leak", "the discount of what will be clicked is 0.55",
           asked=leaked("discount", 0.55, 0.45)),
    Poison("NaN in the model", "a weight of the candidate is NaN", model="nan"),
    Poison("ranks well, promises too much", "the candidate learns positives thrice", model="eager"),
)  # fmt: skip

_FLIGHTS: Final = (
    Poison("flipped labels", "late is told as in time, in time as late", outcomes=flipped),
    Poison("stuck feature", "every flight leaves from EWR", asked=stuck("origin", "EWR")),
    Poison("unit change", "distances in kilometres", asked=scaled("distance", 1.609344)),
    Poison("unit change x100", "distances in hundredths of a mile",
           asked=scaled("distance", 100)),
    Poison("timezone slip", "outcomes dated five hours back: local time read as UTC",
           reported=redated(-5 * HOUR_US)),
    Poison("null burst", "60% of the tail numbers are missing", asked=missing("tailnum", 0.6)),
    Poison("duplicate burst", "every event comes five times", reported=repeated(5)),
    Poison("outcomes stop", "no arrival is reported any more", reported=no_outcomes),
    Poison("source stop", "nothing is reported any more", reported=silence),
    Poison("clock skew", "half of the outcomes dated two hours back",
           reported=redated(-2 * HOUR_US, 0.5)),
    Poison("schema change", "carrier is called airline", reported=renamed("carrier", "airline")),
    Poison("label leak", "the distance of what will be late is 6,000 miles",
           asked=leaked("distance", 6000, 5000)),
    Poison("NaN in the model", "a weight of the candidate is NaN", model="nan"),
    Poison("ranks well, promises too much", "the candidate learns positives thrice", model="eager"),
)  # fmt: skip

DAY_S: Final = 86_400
DRILLS: Final = {
    "coupons": Drill(30, 600, warm_windows=14, poisons=_COUPONS),
    # A day, because mornings are in time and evenings late: what a window says must not depend on
    # its hour. It begins at three, when what was late yesterday has landed and nothing leaves yet.
    # January is the base; in two more weeks the gates learn what is usual.
    "flights": Drill(
        DAY_S, 31 * DAY_S, warm_windows=14, poisons=_FLIGHTS, begins_h=3, guard_first=True
    ),
}


def drill_of(spec: LineSpec) -> Drill:
    """How this line is drilled. Raises `InputError` for one whose poisons nobody wrote."""
    if spec.line not in DRILLS:
        raise InputError(
            f"line {spec.line!r} has no drills; there are some for: {', '.join(DRILLS)}"
        )
    return DRILLS[spec.line]


def stage_of(spec: LineSpec, seed: int, data: Path | None) -> Stage:
    """The traffic of a line: simulated where it is live, else recorded in files below `data`.

    Raises `InputError` where those are not there.
    """
    if spec.source.kind == "live":
        return Campaign(spec, SimulatorConfig(seed=seed), START_US)
    if data is None:
        raise InputError(
            f"line {spec.line!r} is drilled on recorded files; give --data the folder that "
            "source.impressions.path starts from"
        )
    return Recorded(spec, read_events(spec, data)[0], seed, drill_of(spec).begins_h)
