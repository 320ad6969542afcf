"""The newest rows of a line's views for one batch of requests, taken from the store by column.

What Feast's `get_online_features` gives for the line's feature service, without a message for
each value: each different key is read once, and the window values go from the store's bytes to
NumPy and into `requests.compute`, the function that the on-demand view calls. A contract test
holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import requests
from headrace.declaration import MISSING, LineSpec
from headrace.feature_rows import feature_table
from headrace.raw import Candidates
from headrace.requests import Columns, Computation

Ints = NDArray[np.int64]


def nothing() -> None:
    """What a reader does meanwhile who has nothing to do."""


@dataclass(frozen=True)
class Distinct:
    """A column of a batch: its values, those that differ, and for each request the place of its."""

    column: Sequence[Any]
    different: list[Any]
    places: Ints

    @classmethod
    def of(cls, column: Sequence[Any]) -> Distinct:
        """From a value for each request."""
        known = dict.fromkeys(column)
        if len(known) == 1:  # as in most requests for those of the user
            places = np.zeros(len(column), np.int64)
        elif len(known) == len(column):
            places = np.arange(len(column))
        else:
            numbers = {value: number for number, value in enumerate(known)}
            places = np.array([numbers[value] for value in column], np.int64)
        return cls(column, list(known), places)


@dataclass(frozen=True)
class Keys:
    """The different keys of a view in a batch, and for each request the place of its key."""

    different: list[bytes]
    places: Ints

    @classmethod
    def of(
        cls, parts: Sequence[Distinct], encode: Callable[[Iterable[tuple[Any, ...]]], list[bytes]]
    ) -> Keys:
        """From the columns of their parts."""
        vary = [part for part in parts if len(part.different) > 1]
        if len(vary) > 1:
            rows = Distinct.of(list(zip(*(part.column for part in parts), strict=True)))
            return cls(encode(rows.different), rows.places)
        size = len(vary[0].different) if vary else 1
        columns = [part.different * (size // len(part.different)) for part in parts]
        return cls(encode(zip(*columns, strict=True)), (vary or parts)[0].places)


@dataclass(frozen=True)
class Found:
    """What the store holds for a batch: by view, its mark (us; None: nothing was ever written to
    it) and the rows of its keys, (keys, 1 + features): `<view>__at` and the window features in
    the order of the view, `MISSING` where nothing is.
    """

    marks: dict[str, int | None]
    rows: dict[str, tuple[Keys, Ints]]


def found_none(spec: LineSpec, count: int) -> Found:
    """What a store holds that knows none of so many requests' keys."""
    keys = Keys([b""], np.zeros(count, np.int64))
    nothing = {
        view: np.full((1, 1 + len(features)), MISSING) for view, features in spec.views.items()
    }
    return Found({}, {view: (keys, rows) for view, rows in nothing.items()})


def assemble(spec: LineSpec, asked: pa.Table, found: Found) -> pa.Table:
    """`columns_of` as a table of `feature_schema`."""
    return feature_table(spec, columns_of(spec, asked, found))


def columns_of(
    spec: LineSpec, asked: pa.Table | Candidates, found: Found, begun: Computation | None = None
) -> Columns:
    """Columns of `feature_schema` for the requests asked, from what the store holds for them.

    Times are int64 us, 0 where a key has no row. A row that is older than `feature_ttl` at its
    request counts as none. `begun`: see `requests.compute`.
    """
    views = spec.views
    columns: Columns = {}
    windows: dict[str, Ints] = {}
    if views:  # of all views at once: there are many calls and few values
        read = [found.rows[view] for view in views]
        held = [rows.T.take(keys.places, axis=1) for keys, rows in read]
        sizes = [len(rows) for rows in held]
        at = np.array([rows[0] for rows in held])
        absent = (at == 0) | (at == MISSING)
        if spec.feature_ttl is not None:
            absent |= at < _moments(asked) - spec.feature_ttl
        empty = [(0, *(feature.empty for feature in features)) for features in views.values()]
        values = np.concatenate(held)
        absent = np.repeat(absent, sizes, axis=0) | (values == MISSING)
        rest = iter(np.where(absent, np.array([*chain(*empty)])[:, None], values))
        for view, features in views.items():
            columns[f"{view}__at"] = next(rest)
            windows |= {feature.name: next(rest) for feature in features}
    inputs = requests.compute(spec, asked, windows, begun)
    return columns | {feature.name: windows[feature.name] for feature in spec.windows} | inputs


def _moments(asked: pa.Table | Candidates) -> Ints | int:
    return asked.at_us if isinstance(asked, Candidates) else asked["request_at"].to_numpy()
