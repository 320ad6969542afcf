"""What a request was answered, and the rows of the served log that tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import CHAMPION_ARM, served_schema
from headrace.feature_rows import feature_schema
from headrace.raw import Candidates
from headrace.requests import Columns

NOBODY: Final = "none"
"""`Scored.fallback` where nobody had to stand in."""


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
class Vectors:
    """Features of some rows as matrices, (features, n): int64 and float64 ones."""

    ints: NDArray[np.int64]
    floats: NDArray[np.float64]

    def __getitem__(self, rows: slice) -> Vectors:
        return Vectors(self.ints[:, rows], self.floats[:, rows])


@dataclass(frozen=True)
class ServedRows:
    """What was served to one request, until the log's writer makes a table of it."""

    scored: Scored
    now_us: int
    candidates: Candidates
    vectors: Vectors

    @property
    def num_rows(self) -> int:
        return len(self.scored.scores)


class ServedTables:
    """Makes the served log's tables of a line, of seventy columns, for many requests at once.

    A request leaves two matrices: to put its columns together one by one would cost the writer a
    call for each column of each request, and whoever answers waits for the interpreter meanwhile.
    """

    def __init__(self, spec: LineSpec) -> None:
        self._schema = served_schema(spec)
        fields = feature_schema(spec)
        self._ints = [field.name for field in fields if not pa.types.is_floating(field.type)]
        self._floats = [field.name for field in fields if pa.types.is_floating(field.type)]

    def vectors(self, features: Columns, rows: int) -> Vectors:
        """The features (n,) of so many rows."""
        ints = np.array([features[name] for name in self._ints], np.int64)
        floats = np.array([features[name] for name in self._floats], np.float64)
        return Vectors(ints.reshape(-1, rows), floats.reshape(-1, rows))

    def table(self, requests: Sequence[ServedRows]) -> pa.Table:
        """The rows of some requests, one after the other."""
        columns = _said(requests)
        columns |= Candidates.together([each.candidates for each in requests]).columns
        ints = np.concatenate([each.vectors.ints for each in requests], axis=1)
        floats = np.concatenate([each.vectors.floats for each in requests], axis=1)
        columns |= dict(zip(self._ints, ints, strict=True))
        columns |= dict(zip(self._floats, floats, strict=True))
        arrays = [_column(field, columns[field.name]) for field in self._schema]
        return pa.Table.from_arrays(arrays, schema=self._schema)


def _said(requests: Sequence[ServedRows]) -> dict[str, Any]:
    """Columns of the answers, each with as many rows as its request has candidates."""
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
    return columns


def _column(field: pa.Field, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values
    if pa.types.is_timestamp(field.type):  # a time of 0: the key had no row
        return pa.array(values, pa.int64(), mask=values == 0).view(field.type)
    return pa.array(values, field.type)
