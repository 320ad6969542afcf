"""Rows on hold, found by impression id: what the label join remembers.

Pure. A row is known by its log offset, which rises with every row added; so offsets stay
valid when dead rows are squeezed out. Each operation costs as much as the rows it touches;
squeezing is amortised over the rows that died.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
_MIN_DEAD = 4096


class Shelf:
    """Immutable Arrow columns (`impression_id` among them) beside NumPy fields that change."""

    def __init__(self, schema: pa.Schema, fields: Mapping[str, type[Any]]) -> None:
        self.schema = schema
        self.index: dict[str, int] = {}
        self._size = 0
        self._dead = 0
        self._blocks: list[pa.Table] = []
        self._fields: dict[str, NDArray[Any]] = {
            name: np.empty(1024, dtype=dtype)
            for name, dtype in {**fields, "offset": np.int64, "alive": np.bool_}.items()
        }

    def __getitem__(self, field: str) -> NDArray[Any]:
        """A writable view of a field, one item for each row; `alive` is False for dropped rows."""
        return self._fields[field][: self._size]

    def find(self, ids: Sequence[str]) -> Int64s:
        """Offset of each id's row, -1 where there is none."""
        return np.fromiter(map(self.index.get, ids, repeat(-1)), dtype=np.int64, count=len(ids))

    def places(self, offsets: Int64s) -> Int64s:
        """Positions of rows by their offsets (all of them must be on the shelf)."""
        return np.searchsorted(self["offset"], offsets).astype(np.int64)

    def add(self, rows: pa.Table, offsets: Int64s, fields: Mapping[str, Any]) -> None:
        """Put rows with rising offsets behind all others; `index` is the caller's to set."""
        count = rows.num_rows
        if count == 0:
            return
        self._reserve(count)
        end = self._size + count
        for name, values in {**fields, "offset": offsets, "alive": True}.items():
            self._fields[name][self._size : end] = values
        self._size = end
        block = rows
        while self._blocks and self._blocks[-1].num_rows <= 2 * block.num_rows:
            block = pa.concat_tables([self._blocks.pop(), block])
        self._blocks.append(block.combine_chunks())

    def take(self, places: Int64s) -> pa.Table:
        """The Arrow columns at these positions, in their order."""
        starts = np.cumsum([0, *(block.num_rows for block in self._blocks)])
        which = np.searchsorted(starts, places, side="right") - 1
        parts, order = [], []
        for number in np.unique(which):
            wanted = np.flatnonzero(which == number)
            parts.append(self._blocks[number].take(pa.array(places[wanted] - starts[number])))
            order.append(wanted)
        if not parts:
            return self.schema.empty_table()
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(parts).combine_chunks().take(pa.array(back))

    def drop(self, places: Int64s) -> None:
        """Forget rows, and their ids where the index still names them."""
        if places.size == 0:
            return
        ids = self.take(places)["impression_id"].to_numpy().tolist()
        for name, offset in zip(ids, self["offset"][places].tolist(), strict=True):
            if self.index.get(name) == offset:
                del self.index[name]
        self["alive"][places] = False
        self._dead += places.size
        if self._dead > _MIN_DEAD and 2 * self._dead > self._size:
            self._squeeze()

    def _squeeze(self) -> None:
        alive = np.flatnonzero(self["alive"])
        table = self.take(alive)
        for name, values in self._fields.items():
            self._fields[name] = values[alive]
        self._size, self._dead, self._blocks = alive.size, 0, [table.combine_chunks()]

    def _reserve(self, count: int) -> None:
        need = self._size + count
        for name, values in self._fields.items():
            if values.size < need:
                grown = np.empty(max(need, 2 * values.size), dtype=values.dtype)
                grown[: self._size] = values[: self._size]
                self._fields[name] = grown
