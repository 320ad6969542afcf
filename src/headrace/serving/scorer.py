"""One request: read features, score, hand the served rows to the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import (
    ARROW_TYPES,
    CHAMPION_ARM,
    PINNED_ARM,
    TIME,
    input_fields,
    served_schema,
)
from headrace.serving.arms import Arms, Drawn
from headrace.serving.pinned import Held, Pinned
from headrace.serving.predict import predict
from headrace.serving.served import ServedWriter
from headrace.serving.swap import Follower, Loaded
from headrace.store import Store


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True)
class Scored:
    """Scores (n,) float64 in the order of the candidates, and which model gave them.

    `scores` are probabilities of a click; `tasks`, of a line with conversions, those of a
    `conversion` given a click and of `click_and_conversion`. `arm`: `champion` or a challenger of
    the line's race, or `pinned` where the request asked for a version, which nobody learns from.
    `propensity`: the probability with which that arm was drawn.
    """

    request_id: str
    version: str
    watermark_us: int
    staleness_s: float
    impression_ids: list[str]
    scores: NDArray[np.float64]
    tasks: dict[str, NDArray[np.float64]]
    arm: str = CHAMPION_ARM
    propensity: float = 1.0


class Scorer:
    """Scores candidates of one line with the arm that is drawn and logs every served vector."""

    def __init__(
        self,
        spec: LineSpec,
        store: Store,
        models: Follower,
        served: ServedWriter,
        pinned: Pinned,
        *,
        arms: Arms,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._spec = spec
        self._store = store
        self._models = models
        self._served = served
        self._clock_us = clock_us
        self._pinned = pinned
        self._arms = arms
        self._inputs = [field.name for field in input_fields(spec)]
        self._schema = served_schema(spec)

    def warm(self) -> None:
        """Import Feast, open its store and read one absent key, before the first request."""
        nothing = {n: pa.nulls(1, ARROW_TYPES[kind]) for n, kind in self._spec.columns.items()}
        self._store.read_online(self._spec, _at(pa.table(nothing), self._clock_us()))

    def score(self, request_id: str, candidates: pa.Table, pin: str | None = None) -> Scored:
        """Score candidates: a table of the line's declared columns, null where missing.

        The line's race draws the arm that answers; without one it is the champion. `pin` names a
        version that answers in its place, and its rows are marked. The clock is read once:
        `request_at` of the features, `served_at` of the log and the staleness are the same moment.
        Raises `EnvironmentFault` when no champion is loaded, the store cannot be read, or the
        served log has no room; `InputError` for an unknown `pin`.
        """
        now_us = self._clock_us()
        features = self._store.read_online(self._spec, _at(candidates, now_us))
        inputs = features.select(self._inputs)
        drawn = Drawn(PINNED_ARM, 1.0, None) if pin else self._arms.draw(request_id, candidates)
        with self._model(drawn, pin) as loaded:
            tasks = predict(loaded, inputs)
        scored = Scored(
            request_id=request_id,
            version=loaded.version.version,
            watermark_us=loaded.version.watermark_us,
            staleness_s=(now_us - loaded.version.watermark_us) / 1e6,
            impression_ids=[f"{request_id}:{i}" for i in range(candidates.num_rows)],
            scores=tasks.pop("click"),
            tasks=tasks,
            arm=drawn.arm,
            propensity=drawn.propensity,
        )
        self._served.put(self._served_rows(scored, candidates, features, now_us))
        if not pin:
            self._arms.shadow(request_id, now_us, inputs)
        return scored

    def _model(self, drawn: Drawn, pin: str | None) -> AbstractContextManager[Loaded | Held]:
        return (drawn.follower or self._models).use() if pin is None else self._pinned.use(pin)

    def _served_rows(
        self, scored: Scored, candidates: pa.Table, features: pa.Table, now_us: int
    ) -> pa.Table:
        size = candidates.num_rows
        given = {
            "impression_id": pa.array(scored.impression_ids, pa.string()),
            "request_id": pa.repeat(scored.request_id, size),
            "served_at": pa.repeat(pa.scalar(now_us, TIME), size),
            "version": pa.repeat(scored.version, size),
            "score": pa.array(scored.scores, pa.float64()),
            **{f"{task}_score": pa.array(values) for task, values in scored.tasks.items()},
            "arm": pa.repeat(scored.arm, size),
            "propensity": pa.repeat(scored.propensity, size),
        }
        for table in (candidates, features):
            given.update(zip(table.column_names, table.columns, strict=True))
        return pa.table([given[name] for name in self._schema.names], schema=self._schema)


def _at(candidates: pa.Table, now_us: int) -> pa.Table:
    moments = pa.repeat(pa.scalar(now_us, pa.int64()), candidates.num_rows)
    return candidates.append_column("request_at", moments)
