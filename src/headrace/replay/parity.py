"""Parity of a replay: every vector that was streamed, computed again from the whole log at once.

The stream resolved its events, held its windows and asked them day by day. Here the log is joined
in one piece, cut by key instead of by time, and no window state of the stream is used: only the
kernel and `requests.transform` are the same.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.backfill.features import features as batch_features
from headrace.bits import bits
from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.labels.state import LabelState
from headrace.requests import transform

Ints = NDArray[np.int64]
_SLICE_ROWS: Final = 100_000
_SHOWN: Final = 20


class Streamed:
    """The vectors of a stream: window features and model inputs of each impression.

    Memory: 8 bytes for each of them and as much for the windows computed again, 440 bytes a row
    with the 15 windows and 25 inputs of `flights`, beside the events.
    """

    def __init__(self, spec: LineSpec) -> None:
        self._spec = spec
        self._offsets: list[Ints] = []
        self._vectors: list[pa.Table] = []

    def add(self, offsets: Ints, windows: pa.Table, inputs: pa.Table) -> None:
        """Keep the vectors of impressions at these offsets, row for row."""
        self._offsets.append(offsets)
        columns = [*windows.columns, *inputs.columns]
        self._vectors.append(pa.table(columns, [*windows.column_names, *inputs.column_names]))

    def compared(self, events: pa.Table) -> dict[str, Any]:
        """Rows compared bit by bit, values that differ, their features, the first in detail.

        `events` is the whole log (event schema and `offset`). The result is JSON: `rows`,
        `mismatches`, `by_feature` and `first`, a list of `{"impression_id", "offset", "feature",
        "streamed", "batch"}`.
        """
        offsets = np.concatenate([np.empty(0, np.int64), *self._offsets])
        streamed = pa.concat_tables(self._vectors) if self._vectors else pa.table({})
        asked = events.select(["impression_id", *self._spec.columns]).take(pa.array(offsets))
        asked = asked.append_column("request_at", events["arrival_at"].take(pa.array(offsets)))
        windows = batch_features(self._spec, LabelState(self._spec).resolve(events), asked)
        counts: Counter[str] = Counter()
        first: list[dict[str, Any]] = []
        for start in range(0, len(offsets), _SLICE_ROWS):
            ours = windows.slice(start, _SLICE_ROWS)
            rows = asked.slice(start, _SLICE_ROWS)
            batch = self._vector(rows, ours)
            for name in batch.column_names:
                theirs = streamed[name].slice(start, _SLICE_ROWS)
                wrong = np.flatnonzero(bits(theirs) != bits(batch[name]))
                counts[name] += len(wrong)
                first += [
                    {
                        "impression_id": rows["impression_id"][row].as_py(),
                        "offset": int(offsets[start + row]),
                        "feature": name,
                        "streamed": _plain(theirs[row]),
                        "batch": _plain(batch[name][row]),
                    }
                    for row in wrong[: _SHOWN - len(first)].tolist()
                ]
        return {
            "rows": len(offsets),
            "mismatches": counts.total(),
            "by_feature": dict(+counts),
            "first": first,
        }

    def _vector(self, rows: pa.Table, windows: pa.Table) -> pa.Table:
        for name in windows.column_names:
            rows = rows.append_column(name, windows[name])
        inputs = transform(self._spec, rows)
        names = [*windows.column_names, *(item.name for item in input_fields(self._spec))]
        return pa.table([*windows.columns, *inputs.columns], names)


def _plain(value: pa.Scalar) -> int | float | None:
    """A JSON value; a NaN (missing) is None."""
    plain: int | float = value.as_py()
    return None if math.isnan(plain) else plain
