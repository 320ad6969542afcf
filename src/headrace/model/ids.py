"""Dynamic ids: every id that came often enough has a row of its own. NumPy only.

An id is known by its 64-bit key, which is one to one within a field. `slots` is an
open-addressing hash table, int64 (slots, 4): key, place, count, last event time in µs. Place is 0
for an empty slot, 1 for an id that still waits, else its row + 2. Of the rows the first `fields`
are the defaults of ids that have none, one a field, learned from all of them; the next `fields`
are those of missing values; then come rows of admitted ids, the smallest free one first.

Everything follows from the arrays of `state`, the free rows too, so that a restored map goes on
in the same bytes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import IntegrityError

Keys = NDArray[np.uint64]
_KEY, _PLACE, _COUNT, _SEEN = range(4)
_EMPTY, _WAITING, _FIRST = 0, 1, 2
_SMALLEST: Final = 1024
_SWEEPS: Final = 4  # looks for expired ids in each `expire_after` of event time


def first_capacity(fields: int) -> int:
    """Rows of the table of a fresh map."""
    return max(_SMALLEST, 1 << (2 * fields - 1).bit_length())


def admitted(slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys, as int64 and rising, of the ids in `slots` that have a row, and their rows."""
    has_row = slots[slots[:, _PLACE] >= _FIRST]
    ordered = has_row[np.argsort(has_row[:, _KEY], kind="stable")]
    return ordered[:, _KEY].copy(), ordered[:, _PLACE] - _FIRST


class DynamicIds:
    """Rows of ids, with admission after a count, expiry after idle event time, and recycling."""

    def __init__(self, fields: int, admit_after: int, expire_after_us: int | None):
        self._fields = fields
        self._admit_after = admit_after
        self._expire_after_us = expire_after_us
        empty = {"ids": np.zeros((_SMALLEST, 4), np.int64), "clock": np.zeros(2, np.int64)}
        self.load(empty, first_capacity(fields))

    @property
    def capacity(self) -> int:
        """Rows that the table needs: doubled when none is free."""
        return self._capacity

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of `ids` (the slots) and `clock`: newest event time, last sweep."""
        return {"ids": self._slots.copy(), "clock": self._clock.copy()}

    def check(self, state: dict[str, NDArray[Any]], capacity: int) -> None:
        """Raise `IntegrityError` unless `state` is a map into a table of `capacity` rows."""
        slots, clock = state.get("ids"), state.get("clock")
        if (
            slots is None
            or clock is None
            or slots.dtype != np.int64
            or clock.dtype != np.int64
            or slots.ndim != 2
            or slots.shape[1] != 4
            or len(slots) != 1 << (len(slots).bit_length() - 1)
            or clock.shape != (2,)
            or not 2 * self._fields <= capacity
            or slots[:, _PLACE].max() - _FIRST >= capacity
        ):
            raise IntegrityError(
                "state arrays 'ids' and 'clock' are no map of ids; load another version or run a "
                "full retrain"
            )

    def load(self, state: dict[str, NDArray[Any]], capacity: int) -> None:
        """Take over the arrays of a checked state, for a table of `capacity` rows."""
        self._slots, self._clock = state["ids"].copy(), state["clock"].copy()
        rows = self._slots[:, _PLACE] - _FIRST
        rows = rows[rows >= 0]
        self._capacity = capacity
        self._free = np.setdiff1d(np.arange(2 * self._fields, self._capacity), rows)
        self._used = int(np.count_nonzero(self._slots[:, _PLACE]))
        self.mark()

    def mark(self) -> None:
        """Let `changes` count from here."""
        self._touched = np.zeros(len(self._slots), np.bool_)
        self._whole = False

    def changes(self) -> NDArray[np.int64] | None:
        """Numbers of the slots written since the mark; None when they were laid out anew."""
        return None if self._whole else np.flatnonzero(self._touched)

    def values(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The content of those slots, (n, 4)."""
        return self._slots[slots]

    def rows(self, keys: Keys, missing: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Rows of keys, both (n, fields); nothing is counted."""
        slots = self._find(keys[~missing])
        place = np.where(slots >= 0, self._slots[slots, _PLACE], _WAITING)
        return self._filled(place, missing)

    def see(
        self, keys: Keys, missing: NDArray[np.bool_], counted: NDArray[np.bool_], at_us: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], Keys]:
        """Count a batch whose newest event happened `at_us`: rows; newly admitted rows, their keys.

        counted: (n,), false for rows that teach nothing new, such as padding and corrections.
        Expired ids are dropped first, so an id that comes back late starts at a count of 1.
        """
        self._advance(at_us)
        present = keys[counted[:, None] & ~missing]
        slots = self._find(present)
        if (slots < 0).any():
            new = np.unique(present[slots < 0])
            self._make_room(new.size)
            self._insert(new)
            slots = self._find(present)
        np.add.at(self._slots[:, _COUNT], slots, 1)
        self._slots[slots, _SEEN] = self._clock[0]
        self._touched[slots] = True
        waits = self._slots[slots, _PLACE] == _WAITING
        enough = self._slots[slots, _COUNT] >= self._admit_after
        admitted = np.unique(slots[waits & enough])
        fresh = self._take_rows(admitted.size)
        self._slots[admitted, _PLACE] = fresh + _FIRST
        return self.rows(keys, missing), fresh, self._slots[admitted, _KEY].view(np.uint64)

    def _filled(self, place: NDArray[np.int64], missing: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Rows of the shape of `missing`: places of its false cells, defaults for who waits."""
        field = np.broadcast_to(np.arange(self._fields), missing.shape)
        rows = field + self._fields
        rows[~missing] = np.where(place >= _FIRST, place - _FIRST, field[~missing])
        return rows.astype(np.int32)

    def _take_rows(self, count: int) -> NDArray[np.int64]:
        while self._free.size < count:
            added = np.arange(self._capacity, 2 * self._capacity)
            self._free = np.concatenate([self._free, added])
            self._capacity *= 2
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _find(self, keys: Keys) -> NDArray[np.int64]:
        """The slot of each key, -1 where it has none."""
        wanted, mask = keys.view(np.int64), len(self._slots) - 1
        at = wanted & mask
        found = np.full(keys.size, -1, np.int64)
        open_ = np.arange(keys.size)
        while open_.size:
            slots = at[open_]
            taken = self._slots[slots, _PLACE] != _EMPTY
            same = taken & (self._slots[slots, _KEY] == wanted[open_])
            found[open_[same]] = slots[same]
            open_ = open_[taken & ~same]
            at[open_] = (at[open_] + 1) & mask
        return found

    def _insert(self, keys: Keys) -> NDArray[np.int64]:
        """Give distinct new keys a slot, in waiting; returns the slots."""
        wanted, mask = keys.view(np.int64), len(self._slots) - 1
        at = wanted & mask
        open_ = np.arange(keys.size)
        while open_.size:
            slots = at[open_]
            claims = self._slots[slots, _PLACE] == _EMPTY
            claimed = slots[claims]
            # where several claim one slot, the last assignment stays, and only that key sees itself
            self._slots[claimed, _KEY] = wanted[open_[claims]]
            won = np.zeros(open_.size, np.bool_)
            won[claims] = self._slots[claimed, _KEY] == wanted[open_[claims]]
            self._slots[slots[won], _PLACE] = _WAITING
            self._touched[slots[won]] = True
            open_ = open_[~won]
            at[open_] = (at[open_] + 1) & mask
        self._used += keys.size
        return at

    def _make_room(self, added: int) -> None:
        """Keep at least half of the slots empty, so that a search stays short."""
        size = len(self._slots)
        while 2 * (self._used + added) > size:
            size *= 2
        if size != len(self._slots):
            self._lay_out(self._slots[self._slots[:, _PLACE] != _EMPTY], size)

    def _lay_out(self, entries: NDArray[np.int64], size: int) -> None:
        entries = entries[np.argsort(entries[:, _KEY], kind="stable")]
        self._slots = np.zeros((size, 4), np.int64)
        self._touched = np.zeros(size, np.bool_)
        self._used, self._whole = 0, True
        self._slots[self._insert(entries[:, _KEY].view(np.uint64).copy())] = entries

    def _advance(self, at_us: int) -> None:
        """Move the clock, never backwards, and drop ids that were idle for too long."""
        now, swept = max(int(self._clock[0]), at_us), int(self._clock[1])
        self._clock[0] = now
        if self._expire_after_us is None or now - swept < self._expire_after_us // _SWEEPS:
            return
        self._clock[1] = now
        taken = self._slots[self._slots[:, _PLACE] != _EMPTY]
        idle = taken[:, _SEEN] < now - self._expire_after_us
        if idle.any():
            rows = taken[idle, _PLACE] - _FIRST
            self._free = np.sort(np.concatenate([self._free, rows[rows >= 0]]))
            self._lay_out(taken[~idle], len(self._slots))
