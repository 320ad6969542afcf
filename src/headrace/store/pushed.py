"""Rows of a view that were asked for lately, kept in memory and current by what is pushed.

Beside the mark of each view, Redis keeps its newest pushes: a stream whose entries say which mark
they follow, which they leave, and the rows. Who reads asks, in the round trip that brings the marks
and the rows it lacks, for the entries since its last. As long as they form a chain up to the mark,
a held row is what the store held at that mark, and no older than one that would be read beside it.
Where the chain is broken (the store was emptied, or written by somebody else), all is read anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
PUSHES: Final = 32
"""Newest pushes of a view that its stream keeps; who reads more seldom starts anew."""
PUSHED_ROWS: Final = 1 << 13
"""The rows of a larger push are not told, so that whoever holds rows of the view starts anew."""
HELD_ROWS: Final = 1 << 16
"""Rows of a view that are held; with one more, all are let go."""
TRIAL_ROWS: Final = 1 << 15
REST_ROWS: Final = 64 * TRIAL_ROWS
_WORD: Final = np.dtype("<i8")
_SIZE: Final = np.dtype("<u4")


@dataclass(frozen=True)
class Push:
    """An entry of a view's stream: the mark that it follows and the one that it leaves (us; 0
    without one); its keys and their rows, (keys, features), none where they are not told.
    """

    name: bytes
    after_us: int
    mark_us: int
    keys: list[bytes] | None
    rows: Ints

    @classmethod
    def of(cls, name: bytes, fields: Sequence[bytes], features: bytes) -> Push:
        """From Redis' answer; the rows are told only where these are their features."""
        told = dict(zip(fields[::2], fields[1::2], strict=True))
        after_us, mark_us = int(told[b"after"] or 0), int(told[b"mark"] or 0)
        if told.get(b"features") != features:
            return cls(name, after_us, mark_us, None, np.empty((0, 0), np.int64))
        ends = np.cumsum(np.frombuffer(told[b"sizes"], _SIZE)).tolist()
        keys = [told[b"keys"][start:end] for start, end in pairwise([0, *ends])]
        rows = np.frombuffer(told[b"rows"], _WORD).reshape(len(keys), -1)
        return cls(name, after_us, mark_us, keys, rows)


def told(keys: Sequence[bytes], columns: Sequence[Ints], features: bytes) -> list[bytes]:
    """The rows of a push, by column, as fields of an entry; none of a large push."""
    if len(keys) > PUSHED_ROWS:
        return []
    sizes = np.fromiter(map(len, keys), _SIZE, len(keys)).tobytes()
    rows = np.stack(columns, axis=1).astype(_WORD).tobytes()
    return [b"features", features, b"sizes", sizes, b"keys", b"".join(keys), b"rows", rows]


def features_of(names: Sequence[str]) -> bytes:
    """How an entry names the features of its rows, in their order."""
    return ",".join(names).encode()


@dataclass(frozen=True)
class Holding:
    """What is in memory of a view: rows; and since the start, how many of the rows that requests
    asked for were taken from there and how many were read.
    """

    rows: int
    hits: int
    misses: int


class PushedRows:
    """The newest rows of one view, those that were asked for lately. One thread at a time.

    Of `TRIAL_ROWS` that are asked for, half must be found once as many have filled the memory.
    Otherwise its keys hardly return, like those by user, and the view is left alone for the next
    `REST_ROWS`: to follow all pushes would cost more than to read few rows.
    """

    def __init__(self, features: Sequence[str]) -> None:
        """`features`: names in the order of a row."""
        self.features, self.width = features_of(features), len(features)
        self._rows: Ints = np.empty((256, len(features)), np.int64)
        self._places: dict[bytes, int] = {}
        self._mark_us = 0
        self._last: bytes | None = None
        self._rest = 0
        self._asked, self._found = -TRIAL_ROWS, 0
        self._hits = self._misses = 0

    @property
    def holding(self) -> Holding:
        return Holding(len(self._places), self._hits, self._misses)

    @property
    def resting(self) -> bool:
        """Whether the view is left alone for now."""
        return self._rest > 0

    @property
    def last(self) -> bytes | None:
        """The entry that was followed last; None where one begins: with the newest, if any."""
        return self._last

    def lacking(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys whose rows have to be read."""
        if len(self._places) > HELD_ROWS:
            self._let_go()
        lacking = [key for key in keys if key not in self._places]
        self._misses += len(lacking)
        self._hits += len(keys) - len(lacking)
        if self._rest > 0:
            self._rest -= len(keys)
            return lacking
        self._asked += len(keys)
        if self._asked > 0:
            self._found += len(keys) - len(lacking)
        if self._asked >= TRIAL_ROWS:
            if 2 * self._found < self._asked:
                self._let_go()
                self._rest, self._asked = REST_ROWS, -TRIAL_ROWS
                self._found = 0
                return list(keys)
            self._asked = self._found = 0
        return lacking

    def follow(self, mark_us: int | None, pushes: Sequence[Push]) -> bool:
        """Take in what was pushed since `last`, read in this order: mark, pushes, lacking rows.

        False: held rows may be old and are let go, the lacking ones must not be held either.
        """
        if self._last is None:
            self._last = pushes[-1].name if pushes else b"0-0"
            self._mark_us = max(mark_us or 0, *(push.mark_us for push in pushes), 0)
            return True
        if len(pushes) >= PUSHES:  # others before may be gone
            return self._let_go()
        passed = {self._mark_us}
        for push in pushes:
            if push.keys is None or push.after_us != self._mark_us:
                return self._let_go()
            self._change(push.keys, push.rows)
            self._last, self._mark_us = push.name, push.mark_us
            passed.add(push.mark_us)
        return (mark_us or 0) in passed or self._let_go()

    def hold(self, keys: Sequence[bytes], rows: Ints) -> None:
        """Hold rows that were read after the pushes that were followed."""
        first = len(self._places)
        beyond = first + len(keys)
        if beyond > len(self._rows):
            grown = np.empty((2 * beyond, self.width), np.int64)
            grown[:first] = self._rows[:first]
            self._rows = grown
        self._rows[first:beyond] = rows
        self._places.update(zip(keys, range(first, beyond), strict=True))

    def rows(self, keys: Sequence[bytes]) -> Ints:
        """The held rows of these keys, (keys, features)."""
        return self._rows[[self._places[key] for key in keys]]

    def _change(self, keys: Sequence[bytes], rows: Ints) -> None:
        places = np.array([self._places.get(key, -1) for key in keys], np.int64)
        held = places >= 0
        self._rows[places[held]] = rows[held]

    def _let_go(self) -> bool:
        """False."""
        self._places.clear()
        self._last = None
        return False
