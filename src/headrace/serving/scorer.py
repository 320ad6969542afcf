"""One request: read features, score, hand the served rows to the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import ARROW_TYPES, TIME, input_fields, served_schema
from headrace.serving.served import ServedWriter
from headrace.serving.swap import Follower
from headrace.store import Store


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True)
class Scored:
    """Scores (n,) float64 in the order of the candidates, and which model gave them.

    `scores` are probabilities of a click; `tasks`, of a line with conversions, those of a
    `conversion` given a click and of `click_and_conversion`.
    """

    request_id: str
    version: str
    watermark_us: int
    staleness_s: float
    impression_ids: list[str]
    scores: NDArray[np.float64]
    tasks: dict[str, NDArray[np.float64]]


class Scorer:
    """Scores candidates of one line with the current champion and logs every served vector."""

    def __init__(
        self,
        spec: LineSpec,
        store: Store,
        models: Follower,
        served: ServedWriter,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._spec = spec
        self._store = store
        self._models = models
        self._served = served
        self._clock_us = clock_us
        self._inputs = [field.name for field in input_fields(spec)]
        self._schema = served_schema(spec)

    def warm(self) -> None:
        """Import Feast, open its store and read one absent key, before the first request."""
        self._store.read_online(self._spec, self._asked([{}], self._clock_us()))

    def score(self, request_id: str, rows: list[dict[str, object]]) -> Scored:
        """Score one row for each candidate; a declared column that a row lacks is missing.

        The clock is read once: `request_at` of the features, `served_at` of the log and the
        staleness are the same moment. Raises `EnvironmentFault` when no champion is loaded, the
        store cannot be read, or the served log has no room.
        """
        now_us = self._clock_us()
        asked = self._asked(rows, now_us)
        features = self._store.read_online(self._spec, asked)
        inputs = features.select(self._inputs)
        with self._models.use() as loaded:
            tasks = loaded.model.predict_tasks(inputs)
        if not all(np.isfinite(scores).all() for scores in tasks.values()):
            raise EnvironmentFault(
                f"version {loaded.version.version} gave a score that is not finite; roll it back"
            )
        ids = [f"{request_id}:{i}" for i in range(len(rows))]
        scored = Scored(
            request_id=request_id,
            version=loaded.version.version,
            watermark_us=loaded.version.watermark_us,
            staleness_s=(now_us - loaded.version.watermark_us) / 1e6,
            impression_ids=ids,
            scores=tasks.pop("click"),
            tasks=tasks,
        )
        self._served.put(self._served_rows(scored, asked, features, now_us))
        return scored

    def _asked(self, rows: list[dict[str, object]], now_us: int) -> pa.Table:
        columns = {
            name: pa.array([row.get(name) for row in rows], ARROW_TYPES[kind])
            for name, kind in self._spec.columns.items()
        }
        return pa.table(columns | {"request_at": pa.array([now_us] * len(rows), pa.int64())})

    def _served_rows(
        self, scored: Scored, asked: pa.Table, features: pa.Table, now_us: int
    ) -> pa.Table:
        size = asked.num_rows
        given = {
            "impression_id": pa.array(scored.impression_ids, pa.string()),
            "request_id": pa.array([scored.request_id] * size, pa.string()),
            "served_at": pa.array([now_us] * size, pa.int64()).cast(TIME),
            "version": pa.array([scored.version] * size, pa.string()),
            "score": pa.array(scored.scores, pa.float64()),
            **{f"{task}_score": pa.array(values) for task, values in scored.tasks.items()},
        }
        for table in (asked, features):
            given.update(zip(table.column_names, table.columns, strict=True))
        return pa.table([given[name] for name in self._schema.names], schema=self._schema)
