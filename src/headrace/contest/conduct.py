"""A race on a line: start it, keep its arms fresh, judge it on the same rows, act on the result.

Every arm is scored on every row by replay: with the version that it held when the row was served,
so no score knows its row's label. Scores are kept in `<line home>/race/<race>/`, labels are read
anew at each look. A row counts once its attribution window is closed, clicked or not; sooner,
clicks would count and silence would not yet (docs/adr/0031).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from headrace import alarms, metrics, train
from headrace.contest.earnings import earned_by
from headrace.contest.entry import arm_of, entered_us, make_race, variant
from headrace.contest.look import (
    Floats,
    Look,
    calibration_of,
    clicks_of,
    closed_rows,
    summary,
)
from headrace.contest.scorecard import Scorecard, Timeline
from headrace.declaration import LineSpec
from headrace.errors import (
    ConflictError,
    DeclarationError,
    GateRejected,
    InputError,
)
from headrace.events import sample_schema
from headrace.gates import Evidence, claims
from headrace.labels.revisions import once
from headrace.line import Champion, LineStore
from headrace.line.races import Raced, Races
from headrace.race.arms import CHAMPION, Arm, Race, Rules
from headrace.race.verdict import Decision, Standing, decide, standing
from headrace.sample import SampleTail, head_tick, tick_as_of
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
_READ: Final = frozenset(
    (
        *("request_id", "served_at", "arm", "propensity", "fallback", "event_at", "emitted_at"),
        *("revision", "label", "positive_weight", "negative_weight", "impression_offset"),
    )
)
"""What a look needs of a sample: a race of days must not hold their vectors."""


class Contest:
    """Looks at one line's race and acts. Keeps the arms' models between looks."""

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        self._settings = settings
        self._spec = spec
        self._home = settings.line_home(spec.line)
        self._store = LineStore(settings.line_store_url(spec.line), spec.line)
        self._races = Races(self._store)
        names = sample_schema(spec).names
        self._samples = SampleTail(spec, self._home, [name for name in names if name in _READ])
        self._scorecard: tuple[str, Scorecard] | None = None
        self._told: set[tuple[int, str]] = set()

    def look(self) -> Look:
        """Score what is new and judge. Raises `InputError` while nothing races."""
        raced, race = self._running()
        states = self._races.states(race.name)
        since_us = states[0].at_us
        head = head_tick(self._home)
        start = min(tick_as_of(self._home, since_us), head)
        scores = self._scores(race, start, head)
        exclude = train.quarantined(self._settings, self._spec, start, head)
        samples = self._samples.read(start, head, exclude)
        rows = once(samples, samples.slice(samples.num_rows)).sort_by("served_at")
        closed = rows.filter(pa.array(closed_rows(self._spec, rows)))
        arms = [CHAMPION, *(arm.name for arm in race.arms)]
        given = scores.of(closed["impression_offset"].to_numpy(), arms)
        served_us = closed["served_at"].cast(pa.int64()).to_numpy()
        for arm in race.arms:
            given[arm.name][served_us < entered_us(states, arm.name)] = np.nan
        standings = self._standings(race, closed, given)
        return Look(
            race=race,
            generation=raced.generation,
            since_us=since_us,
            from_tick=start,
            to_tick=head,
            rows=closed.num_rows,
            open_rows=rows.num_rows - closed.num_rows,
            standings=standings,
            decisions=decide(race, standings),
            calibrations={name: calibration_of(closed, p) for name, p in given.items()},
            clicks=clicks_of(race, closed),
            earned=earned_by(race, closed),
        )

    def act(self, look: Look) -> Look:
        """Promote and drop as the look's decisions say; returns the look with what was done.

        Nothing happens where the rules are not automatic, or another writer moved first: the
        next look sees what it left.
        """
        if any(arm.mode == "thompson" for arm in look.race.arms):
            self._races.put_tally(look.race.name, look.clicks)
        if not look.race.rules.automatic:
            return look
        for decision in look.decisions:
            try:
                if decision.action == "drop":
                    self.leave(decision.arm, "drop", decision.reason)
                elif decision.action == "promote":
                    self._win(look, decision)
            except (ConflictError, GateRejected, DeclarationError) as problem:
                self._tell(look, decision, str(problem))
        return look

    def promote(self, name: str, reason: str) -> Champion:
        """Make an arm's version the champion, and take the arm out of the race.

        Raises `ConflictError` when the line moved meanwhile, `DeclarationError` for an arm whose
        model is declared otherwise than the line's.
        """
        _, race = self._running()
        arm = arm_of(race, name)
        train.require_same_code(self._spec, self._store.get(arm.version))
        champion = self._store.champion()
        if champion is None or champion.version != arm.version:  # or a promotion was cut off here
            champion = self._store.advance(champion, arm.version, "race", reason)
        self.leave(name, "promote", reason)
        return champion

    def leave(self, name: str | None, action: str, reason: str) -> Raced:
        """Take an arm (None: all of them) out of the race; without arms the race is over."""
        raced, race = self._running()
        if name is not None:
            arm_of(race, name)
        rest = tuple(arm for arm in race.arms if name is not None and arm.name != name)
        left = (
            Race(name=race.name, entity=race.entity, arms=rest, rules=race.rules) if rest else None
        )
        return self._races.append(raced, left and left.with_slots(race), action, reason)

    def start(
        self, arms: Sequence[Arm], entity: str | None, rules: Rules | None, reason: str
    ) -> Raced:
        """Begin a race, or change the one that runs: arms of known names are replaced.

        Raises `InputError` for an unknown version or column, or for arms that do not fit together.
        """
        raced = self._races.newest()
        running = None if raced is None else raced.race
        for arm in arms:
            self._store.require_files(arm.version)
            train.require_same_code(variant(self._spec, arm), self._store.get(arm.version))
        names = {arm.name for arm in arms}
        kept = [arm for arm in running.arms if arm.name not in names] if running else []
        column = entity or (running.entity if running else next(iter(self._spec.columns)))
        if column not in self._spec.columns:
            known = ", ".join(self._spec.columns)
            raise InputError(f"entity {column!r} is no column of the line; known: {known}")
        name = running.name if running else f"{self._spec.line}-{time.time_ns() // 1_000}"
        default = running.rules if running else Rules()
        race = make_race(name, column, [*kept, *arms], rules or default)
        action = "change" if running else "start"
        return self._races.append(raced, race.with_slots(running), action, reason)

    def freshen(self) -> list[str]:
        """Let each arm that follows learn what the champion has learned; returns new versions.

        The same samples in the same order, whatever share of the traffic the arm has.
        """
        raced, race = self._running()
        champion = self._store.champion()
        if champion is None:
            return []
        end, new = self._store.get(champion.version).to_tick, {}
        for arm in race.arms:
            start = self._store.get(arm.version).to_tick
            if not arm.follow or start >= end:
                continue
            spec = variant(self._spec, arm)
            if train.window_samples(self._settings, spec, start, end).samples.num_rows:
                new[arm.name] = train.incremental(
                    self._settings, spec, start, end, parent=arm.version
                )
        if new:
            fresh = [
                arm.model_copy(update={"version": new.get(arm.name, arm.version)})
                for arm in race.arms
            ]
            changed = race.model_copy(update={"arms": tuple(fresh)})
            told = ", ".join(f"{name} is {version}" for name, version in new.items())
            self._races.append(raced, changed, "advance", f"to tick {end}: {told}")
        return list(new.values())

    def once(self) -> Look | None:
        """Freshen, look and act; None while nothing races."""
        if self._races.running() is None:
            return None
        try:
            self.freshen()
        except ConflictError as problem:  # somebody changed the race; the next pass sees it
            LOG.info("%s: %s", self._spec.line, problem)
        if self._races.running() is None:
            return None
        look = self.look()
        self._races.put_look(look.race.name, summary(look))
        return self.act(look)

    def _running(self) -> tuple[Raced, Race]:
        running = self._races.running()
        if running is None:
            raise InputError(
                f"nothing races on line {self._spec.line!r}; begin with `headrace race start`"
            )
        return running

    def _scores(self, race: Race, start: int, head: int) -> Scorecard:
        if self._scorecard is None or self._scorecard[0] != race.name:
            folder = self._home / "race" / race.name
            self._scorecard = (race.name, Scorecard(folder, self._spec, self._home, self._store))
        card = self._scorecard[1]
        card.extend(self._timelines(race), start, head)
        return card

    def _timelines(self, race: Race) -> list[Timeline]:
        champions = self._store.history()
        found = [Timeline(CHAMPION, self._spec, [(c.at_us, c.version) for c in champions])]
        states = self._races.states(race.name)
        for arm in race.arms:
            held = [
                (state.at_us, then.version)
                for state in states
                if state.race is not None and (then := state.race.arm(arm.name)) is not None
                and then.model == arm.model
            ]  # fmt: skip
            found.append(Timeline(arm.name, variant(self._spec, arm), held))
        return found

    def _standings(
        self, race: Race, rows: pa.Table, given: Mapping[str, Floats]
    ) -> dict[str, Standing]:
        labels = rows["label"].to_numpy()
        code = rows["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        found = {}
        for arm in race.arms:
            both = np.isfinite(given[CHAMPION]) & np.isfinite(given[arm.name])
            losses = [
                metrics.row_losses(labels[both], given[name][both]) for name in (arm.name, CHAMPION)
            ]
            found[arm.name] = standing(race, arm.name, code[both], losses[0], losses[1])
        return found

    def _win(self, look: Look, decision: Decision) -> None:
        figure, low, high = look.calibrations[decision.arm]
        evidence = Evidence(calibration=figure, calibration_low=low, calibration_high=high)
        off = claims.calibration_within(evidence, self._spec.gates.model.calibration)
        if off is not None:
            raise GateRejected(off)
        self.promote(decision.arm, decision.reason)

    def _tell(self, look: Look, decision: Decision, problem: str) -> None:
        """An arm won or lost, and nothing could be done about it: say so once."""
        key = (look.generation, f"{decision.arm} {decision.action}")
        if key not in self._told:
            self._told.add(key)
            body = {"arm": decision.arm, "decision": decision.action, "reason": decision.reason}
            alarms.raise_alarm(self._settings, self._spec.line, "race", body | {"problem": problem})
