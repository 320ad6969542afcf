"""A request, or some at once: read features, score, hand the served rows to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import CHAMPION_ARM, PINNED_ARM, served_schema
from headrace.requests import Columns
from headrace.serving.answer import Answer, Answers
from headrace.serving.arms import Arms, Drawn
from headrace.serving.served import ServedWriter

LOG = logging.getLogger(__name__)
NOBODY = "none"
"""`Scored.fallback` where nobody had to stand in."""


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True)
class Scored:
    """Scores (n,) float64 in the order of the candidates, and which model gave them.

    `scores` are probabilities of a click; `tasks`, of a line with conversions, those of a
    `conversion` given a click and of `click_and_conversion`. `arm`: `champion` or a challenger of
    the line's race, or `pinned` where the request asked for a version, which nobody learns from.
    `propensity`: the probability with which that arm was drawn. `fallback`: `none`, or who stood
    in, as in the served log; `version` is `prior` and the watermark may be unknown (None) then.
    """

    request_id: str
    version: str
    watermark_us: int | None
    staleness_s: float | None
    impression_ids: list[str]
    scores: NDArray[np.float64]
    tasks: dict[str, NDArray[np.float64]]
    arm: str = CHAMPION_ARM
    propensity: float = 1.0
    fallback: str = NOBODY


@dataclass(frozen=True)
class Asked:
    """A request: its name, and its candidates as `Scorer.score` takes them."""

    request_id: str
    candidates: pa.Table


class Scorer:
    """Scores candidates of one line with the arm that is drawn and logs every served vector."""

    def __init__(
        self,
        spec: LineSpec,
        answers: Answers,
        served: ServedWriter,
        *,
        arms: Arms,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._spec = spec
        self._answers = answers
        self._served = served
        self._clock_us = clock_us
        self._arms = arms
        self._inputs = [feature.name for feature in spec.request_features]

    def score(self, request_id: str, candidates: pa.Table, pin: str | None = None) -> Scored:
        """Score candidates: a table of the line's declared columns, null where missing.

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
        candidates = pa.concat_tables([each.candidates for each in asked])
        features, missing = self._answers.read(_at(candidates, now_us), pin)
        drawn = [
            Drawn(PINNED_ARM, 1.0, None)
            if pin
            else self._arms.draw(each.request_id, each.candidates)
            for each in asked
        ]
        ends = np.cumsum([each.candidates.num_rows for each in asked]).tolist()
        of_each = [
            {
                name: values[end - each.candidates.num_rows : end]
                for name, values in features.items()
            }
            for each, end in zip(asked, ends, strict=True)
        ]
        outcomes: dict[int, Scored | Exception] = {}
        followers = {id(each.follower): each for each in drawn}
        for key, of_them in followers.items():
            places = [place for place, each in enumerate(drawn) if id(each.follower) == key]
            inputs = self._inputs_of([of_each[place] for place in places])
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
        for place, each in enumerate(asked):
            outcome = outcomes[place]
            if isinstance(outcome, Exception):
                continue
            try:
                self._served.put(ServedRows(outcome, now_us, each.candidates, of_each[place]))
            except EnvironmentFault as fault:
                outcomes[place] = fault
                continue
            if not pin and missing is None:
                self._arms.shadow(each.request_id, now_us, self._inputs_of([of_each[place]]))
        return [outcomes[place] for place in range(len(asked))]

    def _inputs_of(self, features: Sequence[Columns]) -> Columns:
        """The model inputs of some requests, one after the other."""
        if len(features) == 1:
            return {name: features[0][name] for name in self._inputs}
        return {name: np.concatenate([each[name] for each in features]) for name in self._inputs}


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


@dataclass(frozen=True)
class ServedRows:
    """What was served to one request, until the log's writer makes a table of it."""

    scored: Scored
    now_us: int
    candidates: pa.Table
    features: Columns

    @property
    def num_rows(self) -> int:
        return len(self.scored.scores)


def served_table(spec: LineSpec, requests: Sequence[ServedRows]) -> pa.Table:
    """The rows of the served log of some requests, one after the other.

    Made of all of them at once, behind the answers: a table has some seventy columns.
    """
    sizes = [each.num_rows for each in requests]
    answers = [each.scored for each in requests]

    places = pa.array(np.repeat(np.arange(len(sizes)), sizes))

    def of_each(values: Sequence[Any]) -> NDArray[Any]:
        return np.repeat(np.array(values), sizes)

    def texts(values: Sequence[str | None]) -> pa.Array:
        return pa.array(values, pa.string()).take(places)

    columns: dict[str, Any] = {
        "impression_id": [name for each in answers for name in each.impression_ids],
        "request_id": texts([each.request_id for each in answers]),
        "served_at": of_each([each.now_us for each in requests]),
        "version": texts([each.version for each in answers]),
        "score": np.concatenate([each.scores for each in answers]),
        "arm": texts([each.arm for each in answers]),
        "propensity": of_each([each.propensity for each in answers]),
        "fallback": texts([None if each.fallback == NOBODY else each.fallback for each in answers]),
    }
    for task in answers[0].tasks:
        columns[f"{task}_score"] = np.concatenate([each.tasks[task] for each in answers])
    asked = pa.concat_tables([each.candidates for each in requests])
    columns |= dict(zip(asked.column_names, asked.columns, strict=True))
    arrays = []
    schema = served_schema(spec)
    for field in schema:
        values = columns.get(field.name)
        if values is None:
            values = np.concatenate([each.features[field.name] for each in requests])
        arrays.append(_column(field, values))
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(field: pa.Field, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values
    if pa.types.is_timestamp(field.type):  # a time of 0: the key had no row
        return pa.array(values, pa.int64(), mask=values == 0).cast(field.type)
    return pa.array(values, field.type)


def _at(candidates: pa.Table, now_us: int) -> pa.Table:
    moments = pa.repeat(pa.scalar(now_us, pa.int64()), candidates.num_rows)
    return candidates.append_column("request_at", moments)
