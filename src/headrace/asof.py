"""The point-in-time join: the newest row of a key at or before each asked moment. Pure.

A block of rows is put into order of time; row p of key k has the code `k * rows + p`. Of the
rows of k at or before a moment, the newest has the largest code not above `k * rows + (number of
rows of any key at or before it) - 1`: two searches over sorted integers, whatever the keys are.
Codes differ, so ties in time are broken by the order in which rows came, never by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.errors import InputError

Ints = NDArray[np.int64]

BLOCK_ROWS: Final = 1 << 21
NEVER: Final = -(2**63)
_BEFORE_ALL: Final = -(2**62)  # less than any code, and no overflow when one is subtracted
_MOST_NUMBERS: Final = 1 << 36  # times BLOCK_ROWS, or times the values of a key, within 63 bits


@dataclass(frozen=True, eq=False)
class Moments:
    """When rows are asked: `at_us` (int64 us UTC, rising) of the asked rows `order`."""

    at_us: Ints
    order: Ints

    @classmethod
    def of(cls, at: pa.ChunkedArray) -> Moments:
        """Sort the asked moments; one that is null lies before every row."""
        at_us = microseconds(at)
        order = np.argsort(at_us)
        return cls(at_us[order], order)


class AsOfJoin:
    """Newest row of each asked key at or before its moment, found block by block.

    `keys` are the key columns of the asked rows, in the asked order; null equals nothing, and
    without any column every row has the one key. A row older than `ttl_us` before the moment is
    not found; one exactly that old is. Of rows with equal times the one created last wins, then
    the one absorbed last. With `as_known` a row also must have been created by the moment.

    Memory: what is asked, one block, and the rows found so far. Raises InputError where a key
    cannot be compared with the column of its name in a block.
    """

    def __init__(
        self,
        moments: Moments,
        keys: Sequence[pa.ChunkedArray],
        ttl_us: int | None = None,
        *,
        as_known: bool = False,
    ) -> None:
        self._keys = _Numbering(keys, len(moments.order))
        self._moments_us = moments.at_us
        asked = self._keys.asked[moments.order]
        # sorted questions walk forward in memory: several times faster than in any other order
        self._by_key = np.argsort(asked)
        self._asked = asked[self._by_key]
        self._order = moments.order[self._by_key]
        self._oldest_us = None if ttl_us is None else moments.at_us[self._by_key] - ttl_us
        self._as_known = as_known
        self._at_us = np.full(len(asked), NEVER)
        self._created_us = np.full(len(asked), NEVER)
        self._place = np.full(len(asked), -1, dtype=np.int64)
        self._kept: list[pa.Table] = []

    def absorb(
        self,
        keys: Sequence[pa.ChunkedArray],
        at: pa.ChunkedArray,
        created: pa.ChunkedArray | None,
        rows: pa.Table,
    ) -> None:
        """Take in a block of at most `BLOCK_ROWS` rows: keys, times, and what is to be found.

        `keys` come in the order of the asked ones; times are timestamps, without a null in `at`.
        """
        if not rows.num_rows:
            return
        codes, at_us = self._keys.of(keys, rows.num_rows), microseconds(at)
        created_us = None if created is None else microseconds(created)
        order = _by_time(at_us, created_us)
        if order is not None:
            codes, at_us = codes[order], at_us[order]
            created_us = None if created_us is None else created_us[order]
        found = self._search(codes, at_us, created_us)
        hits = np.flatnonzero(found >= 0)
        hits = hits[self._later(hits, found[hits], at_us, created_us)]
        if hits.size:
            place = found[hits] if order is None else order[found[hits]]
            self._place[hits] = place + sum(table.num_rows for table in self._kept)
            self._kept.append(rows)
            self._forget()

    def found(self, schema: pa.Schema) -> pa.Table:
        """For each asked row, in the asked order, the row found or nulls; columns of `schema`."""
        place = np.empty_like(self._place)
        place[self._order] = self._place
        kept = pa.concat_tables([schema.empty_table(), *self._kept])
        return kept.take(pa.array(place, mask=place < 0))

    def _search(self, codes: Ints, at_us: Ints, created_us: Ints | None) -> Ints:
        """For each question the place of its row among rows in order of time, or below 0."""
        size, newest = len(codes), None
        if self._as_known and created_us is not None:
            at_us = np.maximum(at_us, created_us)
            newest = np.argsort(at_us, kind="stable")
            codes, at_us = codes[newest], at_us[newest]
        rows = np.flatnonzero(codes >= 0)
        ranked = np.append(_BEFORE_ALL, np.sort(codes[rows] * size + rows))
        before = np.searchsorted(at_us, self._moments_us, "right") - 1
        first = self._asked * size
        last = np.searchsorted(ranked, first + before[self._by_key], "right") - 1
        if newest is not None:  # what came last need not be the newest: the newest so far is
            key, row = np.divmod(ranked[1:], size)
            ranked[1:] = np.maximum.accumulate(key * size + newest[row])
        return np.where(self._asked >= 0, ranked[last] - first, np.int64(-1))

    def _later(self, hits: Ints, rows: Ints, at_us: Ints, created_us: Ints | None) -> Any:
        """Which rows found lie within their time to live and not before one found earlier."""
        at_hit, known_us = at_us[rows], self._at_us[hits]
        later = at_hit >= known_us
        if created_us is not None:
            created_hit = created_us[rows]
            later &= (at_hit > known_us) | (created_hit >= self._created_us[hits])
        if self._oldest_us is not None:
            later &= at_hit >= self._oldest_us[hits]
        self._at_us[hits[later]] = at_hit[later]
        if created_us is not None:
            self._created_us[hits[later]] = created_hit[later]
        return later

    def _forget(self) -> None:
        """Drop kept rows that nothing found points to, once they outweigh a block."""
        if len(self._kept) > 1 and sum(table.num_rows for table in self._kept) > 2 * BLOCK_ROWS:
            used = np.unique(self._place[self._place >= 0])
            self._kept = [pa.concat_tables(self._kept).take(pa.array(used))]
            self._place = np.where(self._place < 0, -1, np.searchsorted(used, self._place))


class _Numbering:
    """Numbers for the asked key tuples: 0, 1, …; -1 for null parts and for keys nobody asks."""

    def __init__(self, columns: Sequence[pa.ChunkedArray], rows: int) -> None:
        self._parts: list[tuple[pa.Array, Ints | None]] = []
        self.asked = np.zeros(rows, dtype=np.int64)
        size = 1
        for column in columns:
            values = pc.drop_null(pc.unique(_comparable(column)))
            self.asked = _joined(self.asked, _places(column, values), len(values))
            size *= max(len(values), 1)
            levels = None
            if size > _MOST_NUMBERS:
                levels = np.unique(self.asked)
                levels = levels[levels >= 0]
                self.asked = _find(levels, self.asked)
                size = max(len(levels), 1)
            self._parts.append((values, levels))

    def of(self, columns: Sequence[pa.ChunkedArray], rows: int) -> Ints:
        """Numbers of a block's keys."""
        numbers = np.zeros(rows, dtype=np.int64)
        for column, (values, levels) in zip(columns, self._parts, strict=True):
            numbers = _joined(numbers, _places(column, values), len(values))
            if levels is not None:
                numbers = _find(levels, numbers)
        return numbers


def microseconds(times: pa.ChunkedArray) -> Ints:
    """Timestamps as int64 us UTC, nanoseconds cut; without a zone they are UTC. Null is NEVER."""
    zone = times.type.tz
    if times.type.unit != "us":
        times = times.cast(pa.timestamp("us", tz=zone), safe=False)
    return np.asarray(pc.fill_null(times.cast(pa.int64()), NEVER).to_numpy())


def _by_time(at_us: Ints, created_us: Ints | None) -> Ints | None:
    """Places in order of time, then of creation, then as they came; None if they stand so."""
    if created_us is not None:
        return np.lexsort((created_us, at_us))
    if bool(np.all(at_us[1:] >= at_us[:-1])):
        return None
    return np.argsort(at_us, kind="stable")


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """One type for all widths of integers, and one for all kinds of text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        kind = pa.int64()
    elif pa.types.is_string(kind) or pa.types.is_string_view(kind):
        kind = pa.large_string()
    return column if column.type == kind else column.cast(kind)


def _places(column: pa.ChunkedArray, values: pa.Array) -> Ints:
    column = _comparable(column)
    if pa.types.is_null(column.type) or pa.types.is_null(values.type):  # equal to nothing
        return np.full(len(column), -1, dtype=np.int64)
    if column.type != values.type:
        raise InputError(
            f"a key is {values.type} where it is asked and {column.type} where it is stored; "
            "cast the entity column to the stored type"
        )
    places = pc.fill_null(pc.index_in(column, value_set=values), -1)
    return np.asarray(places.to_numpy()).astype(np.int64)


def _joined(numbers: Ints, part: Ints, size: int) -> Ints:
    return np.where((numbers < 0) | (part < 0), np.int64(-1), numbers * size + part)


def _find(levels: Ints, numbers: Ints) -> Ints:
    if not levels.size:
        return np.full(len(numbers), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(levels, numbers), len(levels) - 1)
    return np.where(levels[at] == numbers, at, np.int64(-1))
