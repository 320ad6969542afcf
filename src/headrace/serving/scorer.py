"""One request: read features, score, hand the served rows to the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import CHAMPION_ARM, PINNED_ARM, served_schema
from headrace.requests import Columns
from headrace.serving.answer import Answers
from headrace.serving.arms import Arms, Drawn
from headrace.serving.served import ServedWriter

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
        now_us = self._clock_us()
        features, missing = self._answers.read(_at(candidates, now_us), pin)
        inputs = {name: features[name] for name in self._inputs}
        drawn = Drawn(PINNED_ARM, 1.0, None) if pin else self._arms.draw(request_id, candidates)
        answer = self._answers.give(drawn, pin, inputs, missing)
        watermark_us, tasks = answer.watermark_us, dict(answer.tasks)
        scored = Scored(
            request_id=request_id,
            version=answer.version,
            watermark_us=watermark_us,
            staleness_s=None if watermark_us is None else (now_us - watermark_us) / 1e6,
            impression_ids=[f"{request_id}:{i}" for i in range(candidates.num_rows)],
            scores=tasks.pop("click"),
            tasks=tasks,
            arm=drawn.arm,
            propensity=drawn.propensity,
        )
        if answer.stand_ins:
            scored = replace(scored, fallback=",".join(answer.stand_ins))
        self._served.put(ServedRows(scored, now_us, candidates, features))
        if not pin and missing is None:
            self._arms.shadow(request_id, now_us, inputs)
        return scored


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

    def of_each(values: Sequence[Any]) -> NDArray[Any]:
        return np.repeat(np.array(values), sizes)

    columns: dict[str, Any] = {
        "impression_id": [name for each in answers for name in each.impression_ids],
        "request_id": of_each([each.request_id for each in answers]),
        "served_at": of_each([each.now_us for each in requests]),
        "version": of_each([each.version for each in answers]),
        "score": np.concatenate([each.scores for each in answers]),
        "arm": of_each([each.arm for each in answers]),
        "propensity": of_each([each.propensity for each in answers]),
        "fallback": of_each(
            [None if each.fallback == NOBODY else each.fallback for each in answers]
        ),
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
    if isinstance(values, pa.ChunkedArray):
        return values
    if pa.types.is_timestamp(field.type):  # a time of 0: the key had no row
        return pa.array(values, pa.int64(), mask=values == 0).cast(field.type)
    return pa.array(values, field.type)


def _at(candidates: pa.Table, now_us: int) -> pa.Table:
    moments = pa.repeat(pa.scalar(now_us, pa.int64()), candidates.num_rows)
    return candidates.append_column("request_at", moments)
