"""The race at the server: its arms' models, who answers a request, and the scores of shadows.

The race is followed as the champion is: a look at the line's store twice a second. Each arm has
a `Follower` of its own, so its versions swap as the champion's do. An arm whose model is not there
(yet) takes no part: its entities are the champion's, and the propensities say so. Shadows score
behind the request, in a thread with a bounded queue; what does not fit is counted and shed, for
the race is judged by replay and not by these scores.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace.declaration import LineSpec, ModelSpec
from headrace.errors import ConflictError, EnvironmentFault
from headrace.events import TIME
from headrace.line import Champion, LineStore, Version
from headrace.line.races import Races
from headrace.model import State
from headrace.race.arms import CHAMPION, Arm, Race, draw
from headrace.race.thompson import odds
from headrace.raw import Candidates
from headrace.requests import Columns
from headrace.serving.priority import step_back
from headrace.serving.served import ServedWriter
from headrace.serving.swap import NICE, Follower

LOG = logging.getLogger(__name__)
SHADOW_SCHEMA: Final = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("served_at", TIME, nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)


class ArmLine:
    """The line as an arm's follower sees it: the arm's version in the place of the champion."""

    def __init__(self, store: LineStore) -> None:
        self._store = store
        self._at: Champion | None = None

    def stand_at(self, version: str, generation: int, at_us: int) -> None:
        """The version that the arm holds since that generation of the race."""
        if self._at is None or self._at.version != version:
            self._at = Champion(generation, version, at_us, "race", "", None)

    def champion(self) -> Champion | None:
        return self._at

    def load(self, version: str) -> tuple[Version, State]:
        return self._store.load(version)

    def path(self, since: str, to: str) -> list[Version] | None:
        return self._store.path(since, to)

    def earlier(self) -> Iterator[Champion]:
        """Nothing: where an arm has no model, the champion answers."""
        return iter(())

    def delta(self, version: Version) -> State:
        return self._store.delta(version)


@dataclass(frozen=True)
class Drawn:
    """Who answers a request, the probability of that, and where the model is (None: champion's)."""

    arm: str
    propensity: float
    follower: Follower | None


ALONE: Final = Drawn(CHAMPION, 1.0, None)
"""Who answers while nothing races."""


@dataclass(frozen=True)
class Field:
    """A race as it can be run now: of its arms those whose model is there, and the odds.

    A request that has drawn an arm keeps its follower, whose model answers also after the arm has
    left: changing a race fails no request.
    """

    race: Race
    odds: dict[str, float]
    followers: dict[str, Follower]


class Arms:
    """Follows the race of a line and draws who answers. Without a race the champion does."""

    def __init__(
        self,
        spec: LineSpec,
        store: LineStore,
        shadows: ServedWriter,
        poll_s: float = 0.5,
        waiting: int = 256,
    ) -> None:
        self._spec = spec
        self._store = store
        self._races = Races(store)
        self._shadows = shadows
        self._poll_s = poll_s
        self._runners: dict[str, tuple[Arm, ArmLine, Follower]] = {}
        self._field: Field | None = None
        self._behind: queue.Queue[tuple[str, int, Columns]] = queue.Queue(waiting)
        self.shed = 0
        """Requests that shadows did not score for want of room."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, name="race", daemon=True),
            threading.Thread(target=self._score_behind, name="shadows", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads and the arms' followers; scores that wait are given up."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for _, _, follower in self._runners.values():
            follower.stop()

    def draw(self, request_id: str, candidates: Candidates) -> Drawn:
        """Who answers this request; the entity is that of its first candidate."""
        field = self._field
        if field is None:
            return ALONE
        entity = candidates.columns[field.race.entity][0]
        found = draw(field.race, entity, request_id, field.odds)
        return Drawn(found.arm, found.propensity, field.followers.get(found.arm))

    @property
    def shadowed(self) -> bool:
        """Whether a shadow of the race waits for inputs."""
        field = self._field
        return field is not None and any(arm.mode == "shadow" for arm in field.race.arms)

    def shadow(self, request_id: str, now_us: int, inputs: Columns) -> None:
        """Have the shadows score the inputs of a request, behind it; never waits."""
        try:
            self._behind.put_nowait((request_id, now_us, inputs))
        except queue.Full:
            self.shed += 1

    def about(self) -> dict[str, Any] | None:
        """What races at this server, for people; None while nothing does."""
        field = self._field
        if field is None:
            return None
        return {
            "race": field.race.name,
            "entity": field.race.entity,
            "arms": {
                arm.name: {"mode": arm.mode, "version": arm.version, "share": arm.share}
                for arm in field.race.arms
            },
            "odds": field.odds,
            "shed": self.shed,
        }

    def follow(self) -> None:
        """Look at the race once: hire and dismiss followers, and field the arms that are ready."""
        running = self._races.running()
        arms = {} if running is None else {arm.name: arm for arm in running[1].arms}
        for name, (arm, _, follower) in list(self._runners.items()):
            if name not in arms or arms[name].model != arm.model:
                self._field = None if running is None else self._ready(running[1], without=name)
                del self._runners[name]
                follower.stop()
        if running is None:
            self._field = None
            return
        raced, race = running
        for name, arm in arms.items():
            if name not in self._runners:
                line = ArmLine(self._store)
                self._runners[name] = (arm, line, Follower(_declared(self._spec, arm), line))
                line.stand_at(arm.version, raced.generation, raced.at_us)
                self._runners[name][2].start(prepare=partial(step_back, NICE))
            self._runners[name][1].stand_at(arm.version, raced.generation, raced.at_us)
        self._field = self._ready(race)

    def _ready(self, race: Race, without: str | None = None) -> Field | None:
        """The race among the arms whose model is there."""
        there = [
            arm
            for arm in race.arms
            if arm.name != without
            and (runner := self._runners.get(arm.name)) is not None
            and runner[2].ready
        ]
        if not there:
            return None
        names = {arm.name for arm in there}
        slots = {name: held for name, held in race.slots.items() if name in names}
        field = race.model_copy(update={"arms": tuple(there), "slots": slots})
        followers = {name: self._runners[name][2] for name in names}
        drawn = [arm.name for arm in there if arm.mode == "thompson"]
        if not drawn:
            return Field(field, {}, followers)
        tally = self._races.tally(race.name)
        tallies = {name: tally.get(name, (0.0, 0.0)) for name in (CHAMPION, *drawn)}
        return Field(field, odds(tallies, race.rules.explore), followers)

    def _follow(self) -> None:
        told = ""
        while not self._stop.is_set():
            problem = ""
            try:
                self.follow()
            except ConflictError:
                continue  # the race changed while it was read
            except Exception as fault:  # noqa: BLE001 - the thread must outlive a bad document
                problem = str(fault)
                if problem != told:
                    LOG.error("%s: race not followed: %s", self._spec.line, problem)
            told = problem
            self._stop.wait(self._poll_s)

    def _score_behind(self) -> None:
        while not self._stop.is_set():
            try:
                request_id, now_us, inputs = self._behind.get(timeout=0.2)
            except queue.Empty:
                continue
            field = self._field
            if field is None:
                continue
            for arm in field.race.arms:
                if arm.mode == "shadow":
                    follower = field.followers[arm.name]
                    self._shadow_one(arm.name, follower, request_id, now_us, inputs)

    def _shadow_one(
        self, arm: str, follower: Follower, request_id: str, now_us: int, inputs: Columns
    ) -> None:
        try:
            with follower.use() as loaded:
                scores = np.asarray(loaded.model.predict(inputs), dtype=np.float64)
                version = loaded.version.version
            size = scores.size
            columns = [
                pa.array([f"{request_id}:{i}" for i in range(size)]),
                pa.repeat(request_id, size),
                pa.repeat(pa.scalar(now_us, TIME), size),
                pa.repeat(arm, size),
                pa.repeat(version, size),
                pa.array(scores),
            ]
            self._shadows.put(pa.table(columns, schema=SHADOW_SCHEMA))
        except EnvironmentFault as problem:  # the server stops
            self.shed += 1
            LOG.debug("%s: shadow %s: %s", self._spec.line, arm, problem)


def _declared(spec: LineSpec, arm: Arm) -> LineSpec:
    """The line with the model that the arm declares; what races was checked when it started."""
    if not arm.model:
        return spec
    model = ModelSpec.model_validate(spec.model.model_dump() | arm.model)
    return spec.model_copy(update={"model": model})
