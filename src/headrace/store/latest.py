"""The newest rows of a line's views for one batch of requests, taken from the store by column.

What Feast's `get_online_features` gives for the line's feature service, without a message for
each value: each different key is read once, and the window values go from the store's bytes to
NumPy and into `requests.transform`, the function that the on-demand view calls. A contract test
holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import requests
from headrace.declaration import LineSpec
from headrace.events import TIME
from headrace.feature_rows import feature_schema

Row = tuple[int | None, ...]  # `<view>__at` and the window features, in the order of the view
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Keys:
    """The different keys of a view in a batch, and for each request the place of its key."""

    different: list[bytes]
    places: Ints

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> Keys:
        """From the key of each request."""
        known: dict[bytes, int] = {}
        places = [known.setdefault(key, len(known)) for key in keys]
        return cls(list(known), np.array(places, np.int64))


@dataclass(frozen=True)
class Found:
    """What the store holds for a batch: by view, its mark (us; None: nothing was ever written to
    it) and the rows of its keys (None: no row).
    """

    marks: dict[str, int | None]
    rows: dict[str, tuple[Keys, Sequence[Row | None]]]


def found_none(spec: LineSpec, count: int) -> Found:
    """What a store holds that knows none of so many requests' keys."""
    keys = Keys([b""], np.zeros(count, np.int64))
    return Found({}, {view: (keys, [None]) for view in spec.views})


def assemble(spec: LineSpec, asked: pa.Table, found: Found) -> pa.Table:
    """Columns of `feature_schema` for the requests asked, from what the store holds for them.

    A row that is older than `feature_ttl` at its request counts as none.
    """
    asked_us = asked["request_at"].to_numpy()
    columns: dict[str, pa.Array] = {}
    views = spec.views
    for view, (keys, rows) in found.rows.items():
        nothing = (0, *(feature.empty for feature in views[view]))
        held = np.array([_filled(row, nothing) for row in rows], np.int64)[keys.places]
        absent = held[:, 0] == 0
        if spec.feature_ttl is not None:
            absent |= held[:, 0] < asked_us - spec.feature_ttl
        held[absent] = nothing
        columns[f"{view}__at"] = pa.array(held[:, 0], pa.int64(), mask=absent).cast(TIME)
        for place, feature in enumerate(views[view], start=1):
            columns[feature.name] = pa.array(np.ascontiguousarray(held[:, place]))
    windows = {feature.name: columns[feature.name] for feature in spec.windows}
    given = dict(zip(asked.column_names, asked.columns, strict=True))
    inputs = requests.transform(spec, pa.table(given | windows))
    columns |= dict(zip(inputs.column_names, inputs.columns, strict=True))
    schema = feature_schema(spec)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _filled(row: Row | None, nothing: tuple[int, ...]) -> Sequence[int]:
    if row is None:
        return nothing
    return [empty if value is None else value for value, empty in zip(row, nothing, strict=True)]
