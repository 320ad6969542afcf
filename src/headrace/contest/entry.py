"""Who may race: arms and races checked, with errors that name the key and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from headrace.declaration import LineSpec, ModelSpec
from headrace.errors import InputError
from headrace.line.races import Raced
from headrace.race.arms import Arm, Race, Rules


def variant(spec: LineSpec, arm: Arm) -> LineSpec:
    """The line as the arm declares its model. Raises `InputError` for what is no model."""
    if not arm.model:
        return spec
    try:
        model = ModelSpec.model_validate(spec.model.model_dump() | arm.model)
    except ValidationError as problem:
        raise InputError(f"arm {arm.name!r}: {_first(problem)}") from None
    return spec.model_copy(update={"model": model})


def make_race(name: str, entity: str, arms: Sequence[Arm], rules: Rules) -> Race:
    """A race of these arms. Raises `InputError` where they do not fit together."""
    try:
        return Race(name=name, entity=entity, arms=tuple(arms), rules=rules)
    except ValidationError as problem:
        raise InputError(f"race: {_first(problem)}") from None


def make_arm(**declared: Any) -> Arm:
    """A challenger. Raises `InputError` for what is none."""
    try:
        return Arm.model_validate(declared)
    except ValidationError as problem:
        raise InputError(f"arm {declared.get('name')!r}: {_first(problem)}") from None


def entered_us(states: Sequence[Raced], name: str) -> int:
    """Since when the arm of that name is the one that races now, in µs.

    states: of the race, oldest first. Another version under the name is another arm, unless the
    race itself advanced it.
    """
    since = states[-1].at_us
    for later, before in zip(states[::-1], states[-2::-1], strict=False):
        held = None if later.race is None else later.race.arm(name)
        was = None if before.race is None else before.race.arm(name)
        if held is None or was is None or held.model != was.model:
            break
        if held.version != was.version and later.action != "advance":
            break
        since = before.at_us
    return since


def _first(problem: ValidationError) -> str:
    error = problem.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    return f"{where + ': ' if where else ''}{error['msg'].removeprefix('Value error, ')}"


def arm_of(race: Race, name: str) -> Arm:
    """The arm of that name. Raises `InputError` naming those there are."""
    arm = race.arm(name)
    if arm is None:
        known = ", ".join(arm.name for arm in race.arms)
        raise InputError(f"no arm {name!r} races; known: {known}")
    return arm
