"""The race beside a line's champion: a log of its states, changed while servers follow it.

    <root>/race/00000001.json   one `Raced` a generation, never rewritten
    <root>/race/tally.json      what the Thompson arms have earned, replaced by who judges
    <root>/race/look.json       what the newest look saw, for people; replaced by who judges

As with the champion, whoever creates the next generation first has won.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from headrace.errors import ConflictError, IntegrityError
from headrace.line.generations import Generations
from headrace.line.store import LineStore
from headrace.race.arms import Race
from headrace.sealed import sealed


@dataclass(frozen=True)
class Raced:
    """The race since `at_us` (µs), None once it is over. `action`: start, change, advance (of an
    arm that follows), promote, drop or stop.
    """

    generation: int
    at_us: int
    action: str
    reason: str
    race: Race | None


class Races:
    """Reads and appends the states of a line's race."""

    def __init__(self, store: LineStore) -> None:
        self._line = store.line
        self._files = store.files
        self._generations = Generations(store.files, "race")

    def newest(self) -> Raced | None:
        """The newest state; costs one look at the file system when nothing has changed."""
        newest = self._generations.newest()
        return self.read(newest) if newest else None

    def running(self) -> tuple[Raced, Race] | None:
        """The newest state and its race, None while nothing races."""
        newest = self.newest()
        return None if newest is None or newest.race is None else (newest, newest.race)

    def append(self, expected: Raced | None, race: Race | None, action: str, reason: str) -> Raced:
        """Add the state after `expected`. Raises `ConflictError` when there is one already."""
        new = Raced(
            generation=expected.generation + 1 if expected else 1,
            at_us=time.time_ns() // 1000,
            action=action,
            reason=reason,
            race=race,
        )
        if self._generations.create(new.generation, _to_json(new)):
            return new
        winner = self.read(new.generation)
        raise ConflictError(
            f"race of line {self._line!r}: {action} was to follow generation "
            f"{new.generation - 1}, but {winner.action} did ({winner.reason}); read the race again"
        )

    def read(self, generation: int) -> Raced:
        """One state. Raises `ConflictError` when there is none of that number."""
        body = self._generations.read(generation)
        if body is None:
            raise ConflictError(
                f"race of line {self._line!r} has no generation {generation}; read it again"
            )
        try:
            race = None if body["race"] is None else Race.model_validate(body["race"])
            return Raced(**{**body, "race": race})
        except (TypeError, KeyError, ValidationError) as problem:
            raise IntegrityError(f"race {generation} of {self._line!r}: {problem}") from None

    def states(self, name: str) -> list[Raced]:
        """All states of the race of that name, oldest first."""
        found: list[Raced] = []
        for generation in range(self._generations.newest(), 0, -1):
            state = self.read(generation)
            if state.race is not None and state.race.name == name:
                found.append(state)
            elif found:
                break
        return found[::-1]

    def put_tally(self, name: str, tallies: Mapping[str, tuple[float, float]]) -> None:
        """Replace what each arm of a race has earned: (clicks, rows without)."""
        body = {"race": name, "tallies": {arm: list(pair) for arm, pair in tallies.items()}}
        self._files.replace("race/tally.json", sealed(body))

    def tally(self, name: str) -> dict[str, tuple[float, float]]:
        """What was put last for that race; empty before."""
        body = self._files.read_json("race/tally.json")
        if body is None or body["race"] != name:
            return {}
        return {arm: (pair[0], pair[1]) for arm, pair in body["tallies"].items()}

    def put_look(self, name: str, seen: Mapping[str, Any]) -> None:
        """Replace what the newest look at a race saw; JSON-ready."""
        body = {"race": name, "at_us": time.time_ns() // 1000, **seen}
        self._files.replace("race/look.json", sealed(body), durable=False)

    def seen(self, name: str) -> dict[str, Any] | None:
        """What was put last for that race, with `at_us`; None before."""
        body = self._files.read_json("race/look.json")
        return None if body is None or body["race"] != name else body


def _to_json(state: Raced) -> dict[str, object]:
    race = None if state.race is None else state.race.model_dump(mode="json")
    return {**vars(state), "race": race}
