"""All drills, each with all gates, without the data gate and with none, and a long clean run.

Each drill starts from the same line after the same clean windows, is poisoned for `POISONED` of
them, and runs on clean for `AFTER`. Harm is told against the same time without poison: log loss of
what was answered, over what really happened, and the click rate where a model chooses what is
shown.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace import metrics
from headrace.declaration import LineSpec
from headrace.drill.course import ALL, NO_DATA_GATE, NONE, Course, Defence, Incident, opened
from headrace.drill.lines import drill_of, stage_of
from headrace.drill.poison import CLEAN, Poison
from headrace.errors import InputError

POISONED: Final = 6
AFTER: Final = 6
MOST_REASONS: Final = 40
DEFENCES: Final = {"all": ALL, "no data gate": NO_DATA_GATE, "none": NONE}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How one drill went under one defence.

    `caught_by`: who spoke first, None when nobody did; `rows` and `seconds` of poison until then.
    `through`: poisoned windows that a promoted version had learned, `undone`: those of them that a
    rollback took out again. `logloss`, `click_rate`: of the poisoned windows and those after;
    no click rate where the model does not choose what is shown.
    """

    drill: str
    defence: str
    caught_by: str | None
    reason: str
    also: tuple[str, ...]
    rows: int | None
    seconds: int | None
    through: int
    undone: int
    logloss: float
    click_rate: float | None
    promoted: int


def run(
    spec: LineSpec,
    seed: int = 7,
    clean_windows: int = 500,
    *,
    data: Path | None = None,
    only: Sequence[str] = (),
    defences: Sequence[str] = tuple(DEFENCES),
    say: Say = lambda _text: None,
) -> dict[str, Any]:
    """Run the drills (those named in `only`, all by default) and `clean_windows` clean windows, or
    as many as a recording has. data: the folder of its files.

    The JSON of `out/drills`. Raises `InputError` for a drill, a line or files that there are not.
    """
    drill = drill_of(spec)
    chosen = _chosen(drill.poisons, only)
    stage = stage_of(spec, seed, data)
    course = opened(spec, stage, drill.history_s, drill.window_s, guard_first=drill.guard_first)
    for _ in range(drill.warm_windows):
        course.window()
    say(f"base and {drill.warm_windows} clean windows: {len(course.promoted)} promoted")
    untouched = {name: _outcome(_copy(course, DEFENCES[name]), CLEAN, name) for name in defences}
    outcomes = []
    for name in defences:
        for poison in chosen:
            outcome = _outcome(_copy(course, DEFENCES[name]), poison, name)
            outcomes.append(outcome)
            caught = f"{outcome.caught_by} after {outcome.seconds} s: {outcome.reason[:160]}"
            say(f"{name}: {poison.name}: {caught if outcome.caught_by else 'nobody spoke'}")
    told: dict[str, Any] = {
        "line": spec.line,
        "seed": seed,
        "window_s": course.window_s,
        "poisoned_windows": POISONED,
        "after_windows": AFTER,
        "what": {poison.name: poison.what for poison in chosen},
        "clean_minutes": {name: asdict(each) for name, each in untouched.items()},
        "drills": [asdict(each) for each in outcomes],
    }
    if course.stage.day:
        told["from"] = course.stage.day
    if clean_windows:
        told["clean"] = _clean(course, clean_windows, say)
    return told


def _chosen(poisons: Sequence[Poison], only: Sequence[str]) -> list[Poison]:
    known = [poison.name for poison in poisons]
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise InputError(f"drill {unknown[0]!r}: no such drill; there are: {', '.join(known)}")
    return [poison for poison in poisons if not only or poison.name in only]


def _copy(course: Course, defence: Defence) -> Course:
    """The same line at the same moment, to be spoiled; both share the models' graphs."""
    again = copy.copy(course)
    again.stage = course.stage.copy()
    again.defence = defence
    again.past, again.usual = course.past.copy(), course.usual.copy()
    again.incidents, again.promoted, again.undone = [], [], []
    again._waiting, again._answered = list(course._waiting), list(course._answered)
    again.models[0].load_state(course.champion.state)
    return again


def _outcome(course: Course, poison: Poison, defence: str) -> Outcome:
    start = course.number
    seen = [course.window(poison) for _ in range(POISONED)]
    if poison.model is not None:  # its last candidate is judged in the first window after
        seen.append(course.window())
    seen += [course.window() for _ in range(POISONED + AFTER - len(seen))]
    spoken = [i for i in course.incidents if i.gate != "rollback" and i.window >= start]
    bad = set(range(start, start + POISONED))
    learned = [windows for windows in course.promoted if bad & set(windows)]
    undone = [w for w in course.undone if bad & set(w)]
    first = spoken[0] if spoken else None
    until = None if first is None else min(first.window - start + 1, POISONED)
    happened = np.concatenate([each.happened for each in seen])
    return Outcome(
        drill=poison.name,
        defence=defence,
        caught_by=None if first is None else first.gate,
        reason="" if first is None else "; ".join(first.reasons),
        also=tuple(dict.fromkeys(i.gate for i in spoken if first and i.gate != first.gate)),
        rows=None if until is None else sum(len(each.samples) for each in seen[:until]),
        seconds=None if until is None else until * course.window_s,
        through=sum(len(bad & set(windows)) for windows in learned),
        undone=sum(len(bad & set(windows)) for windows in undone),
        logloss=metrics.log_loss(happened, np.concatenate([each.scores for each in seen])),
        click_rate=float(happened.mean()) if course.stage.ranks else None,
        promoted=len(course.promoted),
    )


def _clean(course: Course, windows: int, say: Say) -> dict[str, Any]:
    """How often each gate spoke although nothing was wrong, and how much was promoted."""
    course = _copy(course, ALL)
    start, judged = course.number, course.judged
    for number in range(windows):
        if not course.stage.lasts(course.window_s):
            windows = number
            break
        course.window()
        if number % 50 == 49:
            say(f"clean: {number + 1} of {windows} windows, {len(course.incidents)} incidents")
    alarms = dict.fromkeys(("data gate", "model gate", "guard", "vitals"), 0)
    reasons = []
    for incident in course.incidents:
        if incident.window >= start and incident.gate in alarms:
            alarms[incident.gate] += 1
            reasons.append(_sentence(incident))
    blamed = {incident.window for incident in course.incidents}
    return {
        "windows": windows,
        "false_alarms": alarms,
        "windows_with_alarm": len(blamed),
        "false_alarm_share": len(blamed) / windows,
        "judged": course.judged - judged,
        "promoted": len(course.promoted),
        "promoted_share": len(course.promoted) / (course.judged - judged),
        "reasons": reasons[:MOST_REASONS],
    }


def _sentence(incident: Incident) -> str:
    told = f"{incident.gate}: {'; '.join(incident.reasons)}"
    return f"{incident.day} {told}" if incident.day else told
