"""History's side of parity: the offline rows of keys as of a moment, by either of two joins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from headrace import parts, requests
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.feature_rows import part_schema
from headrace.parity.causes import Ints
from headrace.sample import TickManifest
from headrace.store import Store
from headrace.windows import key_hashes


class History(Protocol):
    """Offline rows as of a moment, and the model inputs that they give."""

    def rows(self, view: str, keys: pa.Table, at_us: Ints) -> pa.Table:
        """The newest row of each key at or before its moment: `at` (int64 us, 0 where there is
        none) and the view's window features (their `empty` where there is none).
        """

    def inputs(self, asked: pa.Table) -> pa.Table:
        """Model inputs of declared columns, `request_at` (int64 us) and window features."""


class FeastHistory:
    """Feast's point-in-time join and its registered on-demand view."""

    def __init__(self, store: Store, spec: LineSpec) -> None:
        self._store = store
        self._spec = spec

    def rows(self, view: str, keys: pa.Table, at_us: Ints) -> pa.Table:
        """See `History`; a question that rows share is asked once."""
        hashes = key_hashes(keys, self._spec.views[view][0].key)
        _, first, back = np.unique(
            np.stack([hashes, at_us]), axis=1, return_index=True, return_inverse=True
        )
        asked = keys.take(first).append_column("request_at", pa.array(at_us[first]))
        return self._store.read_view_history(self._spec, view, asked).take(back.reshape(-1))

    def inputs(self, asked: pa.Table) -> pa.Table:
        """See `History`."""
        return self._store.transform(self._spec, asked)


class PartHistory:
    """The parts of given ticks and `requests.transform`: no Feast, whose import takes seconds.

    A part that is gone is passed over: its rows are then found to be lost. Memory: the rows of
    one view's parts.
    """

    def __init__(self, spec: LineSpec, home: Path, ticks: Iterable[TickManifest]) -> None:
        self._spec = spec
        self._home = home
        self._ticks = list(ticks)

    def rows(self, view: str, keys: pa.Table, at_us: Ints) -> pa.Table:
        """See `History`. Raises `IntegrityError` for a part that is torn."""
        features = self._spec.views[view]
        stored = self._parts(view)
        asked = pd.DataFrame({"key": key_hashes(keys, features[0].key), "at_us": at_us})
        asked["place"] = np.arange(len(asked))
        known = pd.DataFrame(
            {
                "key": key_hashes(stored, features[0].key),
                "at_us": stored[f"{view}__at"].to_numpy(),
                "row": np.arange(stored.num_rows),
            }
        )
        joined = pd.merge_asof(
            asked.sort_values("at_us", kind="stable"),
            known.sort_values("at_us", kind="stable"),
            on="at_us",
            by="key",
        ).sort_values("place")
        rows = pa.array(joined["row"].to_numpy(), pa.int64(), from_pandas=True)
        names = [f"{view}__at", *(feature.name for feature in features)]
        empty = [0, *(feature.empty for feature in features)]
        found = stored.select(names).take(rows)
        return pa.table(
            [pc.fill_null(found[name], value) for name, value in zip(names, empty, strict=True)],
            names=["at", *names[1:]],
        )

    def _parts(self, view: str) -> pa.Table:
        schema = part_schema(self._spec, view)
        paths = [self._home / tick.features[view] for tick in self._ticks if view in tick.features]
        try:
            return parts.read_all([path for path in paths if parts.exists(path)], schema)
        except (pa.ArrowInvalid, OSError) as problem:
            raise IntegrityError(
                f"{self._home / 'features' / view}: a part is not readable ({problem}); restore it"
            ) from problem

    def inputs(self, asked: pa.Table) -> pa.Table:
        """See `History`."""
        return requests.transform(self._spec, asked)
