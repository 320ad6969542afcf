"""A request, or some at once: read features, score, hand the served rows to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import PINNED_ARM
from headrace.raw import Candidates
from headrace.requests import Columns
from headrace.serving.answer import Answer, Answers
from headrace.serving.arms import Arms, Drawn
from headrace.serving.scored import NOBODY, Scored, ServedRows, ServedTables
from headrace.serving.served import ServedWriter

LOG = logging.getLogger(__name__)


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True)
class Asked:
    """A request: its name, and its candidates as `Scorer.score` takes them."""

    request_id: str
    candidates: Candidates


class Scorer:
    """Scores candidates of one line with the arm that is drawn and logs every served vector."""

    def __init__(
        self,
        spec: LineSpec,
        answers: Answers,
        served: ServedWriter,
        tables: ServedTables,
        *,
        arms: Arms,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._spec = spec
        self._answers = answers
        self._served = served
        self._clock_us = clock_us
        self._arms = arms
        self._tables = tables
        self._inputs = [feature.name for feature in spec.request_features]

    def score(self, request_id: str, candidates: Candidates, pin: str | None = None) -> Scored:
        """Score candidates of the line.

        The line's race draws the arm that answers; without one it is the champion. `pin` names a
        version that answers in its place, and its rows are marked. The clock is read once:
        `request_at` of the features, `served_at` of the log and the staleness are the same moment.
        Where features or model are missing, others stand in as the line declares. Raises
        `EnvironmentFault` when nobody can, or the served log has no room; `InputError` for an
        unknown `pin`.
        """
        (outcome,) = self._score([Asked(request_id, candidates)], pin)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def score_together(self, asked: Sequence[Asked]) -> list[Scored | Exception]:
        """The same for requests that wait at the same moment, with one read and one prediction.

        A row's bits do not depend on who is asked beside it. What cannot be answered is told in
        the place of its answer; one request that fails fails no other.
        """
        try:
            return self._score(asked, None)
        except Exception as problem:
            if len(asked) == 1:
                return [problem]
            if isinstance(problem, EnvironmentFault):
                return [problem] * len(asked)
            LOG.exception("requests that came together are scored one by one")
            return [outcome for each in asked for outcome in self.score_together([each])]

    def _score(self, asked: Sequence[Asked], pin: str | None) -> list[Scored | Exception]:
        now_us = self._clock_us()
        candidates = Candidates.together([each.candidates for each in asked]).at(now_us)
        features, missing = self._answers.read(candidates, pin)
        drawn = [
            Drawn(PINNED_ARM, 1.0, None)
            if pin
            else self._arms.draw(each.request_id, each.candidates)
            for each in asked
        ]
        ends = list(accumulate(each.candidates.num_rows for each in asked))
        rows = [
            slice(end - each.candidates.num_rows, end)
            for each, end in zip(asked, ends, strict=True)
        ]
        outcomes: dict[int, Scored | Exception] = {}
        followers = {id(each.follower): each for each in drawn}
        for key, of_them in followers.items():
            places = [place for place, each in enumerate(drawn) if id(each.follower) == key]
            inputs = self._inputs_of(features, [rows[place] for place in places], ends[-1])
            try:
                answer = self._answers.give(of_them, pin, inputs, missing, len(places))
            except EnvironmentFault as fault:
                outcomes |= dict.fromkeys(places, fault)
                continue
            start = 0
            for place in places:
                stop = start + asked[place].candidates.num_rows
                scored = _scored(asked[place], drawn[place], answer, slice(start, stop), now_us)
                outcomes[place], start = scored, stop
        vectors = self._tables.vectors(features, ends[-1])
        for place, (each, own) in enumerate(zip(asked, rows, strict=True)):
            outcome = outcomes[place]
            if isinstance(outcome, Exception):
                continue
            try:
                self._served.put(ServedRows(outcome, now_us, each.candidates, vectors[own]))
            except EnvironmentFault as fault:
                outcomes[place] = fault
                continue
            if not pin and missing is None and self._arms.shadowed:
                inputs = self._inputs_of(features, [own], ends[-1])
                self._arms.shadow(each.request_id, now_us, inputs)
        return [outcomes[place] for place in range(len(asked))]

    def _inputs_of(self, features: Columns, parts: Sequence[slice], size: int) -> Columns:
        """The model inputs of some parts of so many rows, one after the other."""
        inputs = {name: features[name] for name in self._inputs}
        if sum(part.stop - part.start for part in parts) == size:
            return inputs
        places = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        return {name: values[places] for name, values in inputs.items()}


def _scored(asked: Asked, drawn: Drawn, answer: Answer, rows: slice, now_us: int) -> Scored:
    """A request's part of an answer."""
    tasks = {task: values[rows] for task, values in answer.tasks.items()}
    watermark_us = answer.watermark_us
    return Scored(
        request_id=asked.request_id,
        version=answer.version,
        watermark_us=watermark_us,
        staleness_s=None if watermark_us is None else (now_us - watermark_us) / 1e6,
        impression_ids=[f"{asked.request_id}:{i}" for i in range(asked.candidates.num_rows)],
        scores=tasks.pop("click"),
        tasks=tasks,
        arm=drawn.arm,
        propensity=drawn.propensity,
        fallback=",".join(answer.stand_ins) or NOBODY,
    )
