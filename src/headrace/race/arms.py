"""What a race declares, and which arm answers a request.

A race stands beside a line and changes while the line serves. Its slots are cut once and then
only moved as far as shares change: a growing arm takes slots from the champion, a shrinking one
gives them back, and no user moves between two challengers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.declaration.base import Name

CHAMPION: Final = "champion"
"""The arm that every race has: the line's champion, with all traffic that no other arm has."""
SLOTS: Final = 10_000
MOST_CHALLENGERS: Final = 4
"""Each holds a model of its own in every server's memory."""

Mode = Literal["split", "shadow", "thompson"]
Slots = tuple[tuple[int, int], ...]


class Stated(BaseModel):
    """Base of what a race's document states: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(Stated):
    """A challenger.

    `split` answers its `share` of the entities; `shadow` scores every request and answers none;
    `thompson` draws each request of the champion's share by the odds of being the best.
    `follow`: the race keeps it as fresh as the champion, by the same samples; otherwise it stays
    at `version`. `model`: keys of the line's model that this arm declares otherwise.
    """

    name: Name
    version: str
    mode: Mode = "split"
    share: float = Field(0.0, ge=0, le=1)
    follow: bool = False
    model: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _share_fits(self) -> Self:
        if self.name == CHAMPION:
            raise ValueError(f"{CHAMPION!r} is the arm that every race has; choose another name")
        if self.mode == "split" and not self.share >= 1 / SLOTS:
            raise ValueError(f"a split needs a share of at least {1 / SLOTS:g}; give one, say 0.1")
        if self.mode != "split" and self.share:
            raise ValueError(f"mode {self.mode} takes no share of the entities; leave share out")
        return self


class Rules(Stated):
    """When a race ends. The test is `sequential.mixture` of the paired log losses by request.

    `alpha`: probability that a race promotes any challenger that is no better, however long it is
    watched. `margin`: nats by which it must be better; `tolerance`: nats by which it may be worse
    before it is dropped. Nothing is decided before `min_requests` and an undecided arm is dropped
    at `max_requests`. `explore`: probability that the Thompson draw keeps for each arm.
    """

    alpha: float = Field(0.05, gt=0, lt=0.5)
    margin: float = Field(0.0, ge=0)
    tolerance: float = Field(0.0, ge=0)
    min_requests: int = Field(300, ge=2)
    max_requests: int = Field(1_000_000, ge=2)
    explore: float = Field(0.02, gt=0, le=0.2)
    automatic: bool = True


class Race(Stated):
    """One state of a race: its arms, its rules, and the slots of each split arm.

    `name` salts the hash of `entity`, the column whose values stay with their arm.
    """

    name: str = Field(min_length=1, max_length=128)
    entity: str
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=MOST_CHALLENGERS)
    rules: Rules = Rules()
    slots: dict[str, Slots] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"arm {min(twice)!r} is declared twice; rename one")
        total = sum(arm.share for arm in self.arms)
        if total > 1 - 1 / SLOTS:
            raise ValueError(
                f"shares add up to {total:g}; leave at least {1 / SLOTS:g} to the champion"
            )
        return self

    def arm(self, name: str) -> Arm | None:
        """The challenger of that name, None when there is none."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def with_slots(self, before: Race | None) -> Race:
        """The race with its slots cut, moved as little as possible from those of `before`."""
        held = before.slots if before is not None and before.name == self.name else {}
        shares = {arm.name: arm.share for arm in self.arms if arm.mode == "split"}
        return self.model_copy(update={"slots": allocate(held, shares)})


@dataclass(frozen=True)
class Draw:
    """Which arm answers a request, and with what probability it was drawn for it."""

    arm: str
    propensity: float


def allocate(held: Mapping[str, Slots], shares: Mapping[str, float]) -> dict[str, Slots]:
    """Half-open intervals of `SLOTS` slots for each share (share · `SLOTS`, rounded).

    An arm keeps the slots it holds, gives back its last ones when its share falls, and takes free
    ones, lowest first, when it grows. What is free at the end is the champion's.
    """
    wanted = {name: round(share * SLOTS) for name, share in shares.items()}
    owner: list[str | None] = [None] * SLOTS
    counts = dict.fromkeys(wanted, 0)
    for name, intervals in held.items():
        for start, stop in intervals:
            for slot in range(start, stop):
                if counts.get(name, 0) < wanted.get(name, 0):
                    owner[slot], counts[name] = name, counts[name] + 1
    for name, want in wanted.items():
        for slot in range(SLOTS):
            if counts[name] >= want:
                break
            if owner[slot] is None:
                owner[slot], counts[name] = name, counts[name] + 1
    return {name: _intervals(owner, name) for name in wanted}


def draw(race: Race, entity: object, request_id: str, odds: Mapping[str, float]) -> Draw:
    """The arm of a request: a pure function of the race, the entity, the request and the odds.

    entity: the value of the race's column; without one (None) the request's id stands in for it.
    odds: of `thompson.odds`, by arm with the champion; read only when the race has such arms.
    The propensity is over the draw of the salt, so it is the same for every entity.
    """
    key = request_id if entity is None else f"{type(entity).__name__}:{entity}"
    slot = int(_uniform(race.name, "slot", key) * SLOTS)
    for name, intervals in race.slots.items():
        if any(start <= slot < stop for start, stop in intervals):
            return Draw(name, width(intervals) / SLOTS)
    free = 1 - sum(width(intervals) for intervals in race.slots.values()) / SLOTS
    drawn = {arm.name for arm in race.arms if arm.mode == "thompson"} & odds.keys()
    if not drawn:
        return Draw(CHAMPION, free)
    return _drawn(race.name, request_id, {n: odds[n] for n in (CHAMPION, *sorted(drawn))}, free)


def width(intervals: Slots) -> int:
    """How many slots the intervals hold."""
    return sum(stop - start for start, stop in intervals)


def _drawn(salt: str, request_id: str, odds: Mapping[str, float], free: float) -> Draw:
    total = sum(odds.values())
    point, name = _uniform(salt, "draw", request_id) * total, CHAMPION
    for name, share in odds.items():  # noqa: B007 - where it stops is the answer
        point -= share
        if point < 0:
            break
    return Draw(name, free * odds[name] / total)


def _uniform(*key: str) -> float:
    """A number in [0, 1) that is fixed for the key and looks random over keys."""
    text = "\x1f".join(key).encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 11) / (1 << 53)


def _intervals(owner: list[str | None], name: str) -> Slots:
    found: list[tuple[int, int]] = []
    for slot, holder in enumerate(owner):
        if holder != name:
            continue
        if found and found[-1][1] == slot:
            found[-1] = (found[-1][0], slot + 1)
        else:
            found.append((slot, slot + 1))
    return tuple(found)
