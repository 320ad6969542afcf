"""The loop of a line on its stage's time: data gate, train, judge on later rows, promote, guard.

The order is that of the cycle (docs/adr/0004): a candidate learns the window that has ended and is
judged by the rows of the next one, while the next candidate's window is being filled.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace import baseline, gates, rules, suspicion
from headrace.baseline import Vitals
from headrace.declaration import LineSpec
from headrace.drill.poison import CLEAN, Poison
from headrace.drill.stage import Seen, Stage
from headrace.evaluate import figures, first_seen
from headrace.gates import Evidence
from headrace.model import Model, State
from headrace.watch import Live, watch

USUAL: Final = 10
"""Windows whose vitals are what is to be expected."""


@dataclass(frozen=True)
class Defence:
    """Which gates stand."""

    data: bool = True
    model: bool = True
    guard: bool = True


ALL: Final = Defence()
NO_DATA_GATE: Final = Defence(data=False)
NONE: Final = Defence(data=False, model=False, guard=False)


@dataclass(frozen=True)
class Incident:
    """Something that a gate, the guard or a look at the vitals said at the end of a window.

    `day`: the recorded one on which the window began, if it was recorded.
    """

    window: int
    day: str
    gate: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Version:
    name: str
    state: State
    evidence: dict[str, Any] | None
    learned: tuple[tuple[int, Seen], ...] = ()

    @property
    def windows(self) -> tuple[int, ...]:
        """The numbers of the windows that it learned."""
        return tuple(number for number, _ in self.learned)


@dataclass
class Course:
    """A line as it runs: `window` plays one of `window_s` and does what a cycle does at its end.

    `guard_first`: within a window so long the guard has seen enough before a candidate is judged.
    """

    spec: LineSpec
    stage: Stage
    window_s: int
    guard_first: bool
    champion: _Version
    models: tuple[Model, Model]  # of the champion, of whoever else is asked
    defence: Defence = ALL
    past: deque[pa.Table] = field(default_factory=deque)
    usual: deque[Vitals] = field(default_factory=deque)
    number: int = 0
    day: str = ""
    incidents: list[Incident] = field(default_factory=list)
    promoted: list[tuple[int, ...]] = field(default_factory=list)
    undone: list[tuple[int, ...]] = field(default_factory=list)
    judged: int = 0
    frozen: bool = False
    _previous: _Version | None = None
    _candidate: _Version | None = None
    _waiting: list[tuple[int, Seen]] = field(default_factory=list)
    _answered: list[pa.Table] = field(default_factory=list)

    def window(self, poison: Poison = CLEAN) -> Seen:
        """Play a window and do what follows from it."""
        self.day = self.stage.day
        seen = self.stage.play(self.window_s, self.models[0].predict, self.champion.name, poison)
        self._look_at_vitals(seen.vitals)
        sound = self._check(seen)
        if self.guard_first:
            self._watch(seen)
        self._judge(seen, plausible=sound)
        if not self.guard_first:
            self._watch(seen)
        if sound:
            self._waiting.append((self.number, seen))
        self._learn(poison)
        self.number += 1
        return seen

    def say(self, gate: str, reasons: tuple[str, ...]) -> None:
        """Note an incident at the end of the present window."""
        self.incidents.append(Incident(self.number, self.day, gate, reasons))

    def _look_at_vitals(self, now: Vitals) -> None:
        before = _sum(self.usual)
        told = baseline.symptoms(now, before) if before is not None else []
        if told:
            self.say("vitals", tuple(told))
            return
        self.usual.append(now)
        if len(self.usual) > USUAL:
            self.usual.popleft()

    def _check(self, seen: Seen) -> bool:
        """The data gate on what is new; the windows that wait have passed it."""
        if not self.defence.data or seen.samples.num_rows < self.spec.gates.data.min_rows:
            return True
        past = pa.concat_tables(list(self.past)) if self.past else None
        measured = baseline.figures(self.spec, seen.samples, past, seen.vitals)
        demands = rules.declared(self.spec, measured)
        reasons = rules.broken(rules.frame(self.spec, seen.samples, figures=measured), demands)
        if reasons:
            self.say("data gate", tuple(reasons))
            self.frozen |= baseline.contradiction(reasons) is not None
            return False
        self.past.append(seen.samples)
        while sum(map(len, self.past)) - len(self.past[0]) >= self.spec.gates.data.reference_rows:
            self.past.popleft()
        return True

    def _learn(self, poison: Poison) -> None:
        """Train the next candidate on what waits."""
        if self.frozen:
            return
        learned = tuple(self._waiting)
        parts = [seen.samples for _, seen in self._waiting]
        if sum(map(len, parts)) < self.spec.gates.data.min_rows:
            return
        samples = pa.concat_tables(parts).combine_chunks()
        self._waiting.clear()
        other = self.models[1]
        other.load_state(self.champion.state)
        other.learn(samples)
        if poison.model == "eager":
            for _ in range(2):
                other.learn(samples.filter(pa.array(samples["label"].to_numpy() > 0)))
        state = other.state()
        if poison.model == "nan":
            state = _with_nan(state)
        self._candidate = _Version(f"d{self.number:04d}", state, None, learned)

    def _judge(self, seen: Seen, *, plausible: bool) -> None:
        """Judge the candidate by the rows of the window that has just ended."""
        candidate, self._candidate = self._candidate, None
        if candidate is None:
            return
        self.judged += 1
        other = self.models[1]
        other.load_state(candidate.state)
        if not self.defence.model:
            self._promote(replace(candidate, evidence=None), finite=other.is_finite())
            return
        evidence = self._evidence(candidate, first_seen(seen.samples))
        plausible = plausible and evidence.eval_rows_plausible is True
        evidence = replace(evidence, eval_rows_plausible=plausible)
        verdict = gates.judge(
            self.spec.gates.model,
            evidence,
            now_us=time.time_ns() // 1_000,
            line=self.spec.line,
            candidate=candidate.name,
            champion=self.champion.name,
        )
        if verdict.passed:
            self._promote(replace(candidate, evidence=evidence.to_dict()), finite=True)
            return
        if plausible:
            self.say("model gate", verdict.reasons)
        if not verdict.blames_window:  # it is learned again, with what came since
            self._waiting = list(candidate.learned)

    def _evidence(self, candidate: _Version, rows: pa.Table) -> Evidence:
        """As `evaluate` makes it; nothing was served from files, so parity has nothing to ask."""
        other = self.models[1]
        finite = other.is_finite()
        predicted = other.predict_tasks(rows)
        rival = self.models[0].predict_tasks(rows)
        return Evidence(
            line=self.spec.line,
            candidate=candidate.name,
            parent=self.champion.name,
            champion=self.champion.name,
            train_from_tick=candidate.windows[0],
            train_to_tick=candidate.windows[-1] + 1,
            champion_to_tick=candidate.windows[0],
            eval_from_tick=self.number,
            eval_to_tick=self.number + 1,
            **figures(self.spec, rows, predicted, rival),
            finite=finite,
            parity_rows=0,
            parity_expected=0,
            parity_mismatches=0,
            parity_history="none",
            importance=suspicion.importance(self.spec, rows, other.predict) if finite else None,
            data_passed=True,  # or the drill does without that gate
            made_at_us=time.time_ns() // 1_000,
        )

    def _promote(self, version: _Version, *, finite: bool) -> None:
        self.promoted.append(version.windows)
        self._previous, self.champion = self.champion, version
        self._answered = []
        if finite:  # else the server goes on with the version before (docs/adr/0033)
            self.models[0].load_state(version.state)

    def _watch(self, seen: Seen) -> None:
        """The guard's look at the rows that the champion answered."""
        if not self.defence.guard:
            return
        samples = seen.samples
        mine = samples.filter(pa.array(np.array(samples["version"]) == self.champion.name))
        self._answered.append(mine)
        rows = first_seen(pa.concat_tables(self._answered).combine_chunks())
        if not rows.num_rows or self._previous is None:
            return
        other = self.models[1]
        other.load_state(self._previous.state)
        scores = rows["score"].to_numpy()
        codes = rows["request_id"].combine_chunks().dictionary_encode().indices
        live = Live(
            requests=codes.to_numpy().astype(np.int64),
            labels=rows["label"].to_numpy(),
            scores=scores,
            scored=scores,
            scored_requests=len(codes.unique()),
            previous=other.predict(rows),
        )
        seen_now = watch(self.spec.guard, self.spec.gates.model, self.champion.evidence, live)
        if not seen_now.breaches:
            return
        self.say("guard", seen_now.breaches)
        if seen_now.rollback_helps:
            self.say("rollback", seen_now.breaches)
            self.undone.append(self.champion.windows)
            self.champion, self._previous = self._previous, None
            self.models[0].load_state(self.champion.state)
            self._candidate, self._answered = None, []


def _sum(each: Any) -> Vitals | None:
    found = list(each)
    if not found:
        return None
    fates: dict[str, int] = {}
    for vitals in found:
        for name, count in vitals.fates.items():
            fates[name] = fates.get(name, 0) + count
    return Vitals(
        sum(v.seconds for v in found),
        sum(v.events for v in found),
        sum(v.engagements for v in found),
        sum(v.refused for v in found),
        fates,
    )


def _with_nan(state: State) -> State:
    """A copy with one NaN in the largest array of floats."""
    name = max(
        (n for n, a in state.items() if np.issubdtype(a.dtype, np.floating)),
        key=lambda n: state[n].size,
    )
    spoiled = state[name].copy()
    spoiled.flat[0] = np.nan
    return {**state, name: spoiled}


def opened(
    spec: LineSpec, stage: Stage, history_s: int, window_s: int, *, guard_first: bool = False
) -> Course:
    """A line after a history that no model answered, with a base model that learned it."""
    history = stage.play(history_s, None, "bootstrap")
    models = Model(spec.model, spec.seed), Model(spec.model, spec.seed)
    models[0].learn(history.samples)
    base = _Version("base", models[0].state(), None)
    return Course(spec, stage, window_s, guard_first, base, models)
