"""Poison for a stack that runs for an hour, and what the whole chain's objective says of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.line import Champion
from headrace.report.freshness import covered
from headrace.report.measure import Artifacts
from headrace.sample import Quarantine
from headrace.simulate.poison import DUPLICATE, POISONS, STOP, PoisonSwitch

FIRST_S: Final = 300.0
EVERY_S: Final = 600.0
LASTED_S: Final = 20.0
STALE_S: Final = 120.0  # as the objective in infra/prometheus/headrace.rules.yml has it
FAILED: Final = 0.001
MINUTE_US: Final = 60_000_000
HARMLESS: Final = {
    DUPLICATE: "nothing, for each is learned once",
    STOP: "nothing, for what came was sound",
}


class Drilling:
    """Each ten minutes one poison, in turn, for 20 s; call `step` every second or so."""

    def __init__(self, switch: PoisonSwitch) -> None:
        self._switch, self._began = switch, time.monotonic()
        self.done: list[dict[str, Any]] = []  # name, from_us, to_us
        self._on = False

    def step(self) -> None:
        """Begin or end what is due."""
        since_s = time.monotonic() - self._began - FIRST_S - len(self.done) * EVERY_S
        if not self._on and since_s >= 0:
            name = POISONS[len(self.done) % len(POISONS)]
            self._switch.on(name)
            self.done.append({"name": name, "from_us": time.time_ns() // 1_000})
            self._on = True
        elif self._on and since_s + EVERY_S >= LASTED_S:
            self.end()

    def end(self) -> None:
        """No poison any more."""
        self._switch.off()
        if self._on:
            self.done[-1]["to_us"] = time.time_ns() // 1_000
        self._on = False


@dataclass(frozen=True)
class Drilled:
    """What became of one poison. `shown`: impressions while it lasted, of which the champion at
    the end has `learned` some; `again_s`: from its end to the next promotion.
    """

    name: str
    shown: int
    learned: int
    stopped_by: str
    again_s: float

    def row(self) -> list[str]:
        """As a table shows it."""
        learned = f"{self.learned} of {self.shown}"
        return [f"{self.name}: learned, stopped by, promoted again after",
                f"{learned}, {self.stopped_by}, {self.again_s:.0f} s"]  # fmt: skip


def what_became(found: Artifacts, drills: Sequence[Mapping[str, Any]]) -> list[Drilled]:
    """Each poison, from the artifacts of the line and the times that it lasted."""
    at_us = found.events["event_at"].cast(pa.int64()).to_numpy()
    shown = np.asarray(pc.equal(found.events["event"], "impression"), dtype=bool)
    inside = covered(found.versions, found.champions[-1].version, len(found.manifests))
    refusals = [(f"{c.stage} gate", c.ended_us) for c in found.cycles if c.outcome == "rejected"]
    refusals += [("quarantine", us(each["at"])) for each in Quarantine(found.home).ever()]
    told = []
    for drill in drills:
        hit = shown & (at_us >= drill["from_us"]) & (at_us < drill["to_us"])
        ticks = found.tick_of[hit]
        names = pc.unique(found.events["impression_id"].filter(pa.array(hit)))
        told.append(
            Drilled(
                name=drill["name"],
                shown=len(names),
                learned=int(inside[ticks[ticks >= 0]].sum()),
                stopped_by=_stopped_by(refusals, drill) or HARMLESS.get(drill["name"], "nothing"),
                again_s=_again_s(found.champions, drill),
            )
        )
    return told


def minutes(requests: pa.Table, from_us: int, to_us: int) -> dict[str, Any]:
    """Whole minutes in which every answer was fresher than two minutes and at most one request of
    a thousand failed; a minute without requests is a bad one.

    requests: `simulate.truth.SCHEMAS["requests"]`.
    """
    minute = (requests["started_at"].cast(pa.int64()).to_numpy() - from_us) // MINUTE_US
    stale = pc.fill_null(requests["staleness_s"], 0.0).to_numpy() >= STALE_S
    failed = requests["status"].to_numpy() != 200
    count = (to_us - from_us) // MINUTE_US
    bad = []
    for each in range(count):
        inside = minute == each
        if not inside.any() or stale[inside].any() or failed[inside].mean() > FAILED:
            bad.append(each)
    return {"minutes": count, "bad": bad}


def _stopped_by(refusals: Sequence[tuple[str, int]], drill: Mapping[str, Any]) -> str:
    """What refused something until two minutes after the poison ended."""
    until_us = drill["to_us"] + 2 * MINUTE_US
    stages = {name for name, at_us in refusals if drill["from_us"] < at_us < until_us}
    return " and ".join(sorted(stages))


def us(text: str) -> int:
    """A moment in ISO 8601 as us."""
    return int(datetime.fromisoformat(text).timestamp() * 1e6)


def _again_s(champions: Sequence[Champion], drill: Mapping[str, Any]) -> float:
    later = [c.at_us for c in champions if c.action == "promote" and c.at_us > drill["to_us"]]
    return (min(later) - drill["to_us"]) / 1e6 if later else float("nan")
