"""A number for a whole state that a delta can carry forward without reading the table.

The fingerprint is the sum, mod 2^64, of one hash for each array's name, dtype and shape and one
for each of its rows (of array, row number and bytes). A delta takes the terms of the old rows away
and adds those of the new, so that base + deltas are proven equal to the state that was published
in the time that the touched rows cost. Only arrays of two dimensions have rows; any other counts
as one. A row's hash is multilinear in its 64-bit words, with odd multipliers, finished by
splitmix64's mixer. It finds bugs and bit rot, not forgers: stored bytes have a SHA-256 for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.model.delta import State

Words = NDArray[np.uint64]
Held = Callable[[str, NDArray[np.int64] | None], NDArray[Any] | None]
"""The named rows of an array of a state, or all of it (None); None when there is no such array."""

_BLOCK: Final = 1 << 13  # rows hashed at once, few enough for the cache
_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def fingerprint(state: State) -> int:
    """The fingerprint of a state, in [0, 2^64)."""
    return sum(_array(name, array) for name, array in state.items()) & _MASK


def carried(before: int, held: Held, delta: State) -> int:
    """The fingerprint after `delta`, from the one before it and the state that it applies to.

    Reads of `held` what the delta touches, so it has to be called before the delta is applied.
    """
    after = before
    for key, new in delta.items():
        kind, _, name = key.partition("/")
        if kind == "rows":
            old = held(name, new)
            after += _rows(name, delta[f"values/{name}"], new)
            after -= 0 if old is None else _rows(name, old, new)
        elif kind in ("whole", "gone"):
            old = held(name, None)
            after += _array(name, new) if kind == "whole" else 0
            after -= 0 if old is None else _array(name, old)
    return after & _MASK


def read_through(lengths: dict[str, int], held: Held, rest: State) -> int:
    """The fingerprint of a state whose tables of so many rows are read some rows at a time.

    rest: the arrays that are no tables.
    """
    total = fingerprint(rest)
    for name, length in lengths.items():
        for numbers in _blocks(length):
            values = held(name, numbers)
            assert values is not None
            if not numbers[0]:
                total += _head(name, values.dtype, (length, values.shape[1]))
            total += _rows(name, values, numbers)
    return total & _MASK


def held_by(state: State) -> Held:
    """A state in memory as `carried` reads it."""

    def held(name: str, rows: NDArray[np.int64] | None) -> NDArray[Any] | None:
        array = state.get(name)
        return array if array is None or rows is None else array[rows]

    return held


def _array(name: str, array: NDArray[Any]) -> int:
    table = array if array.ndim == 2 else array.reshape(1, -1)
    total = _head(name, array.dtype, array.shape)
    for numbers in _blocks(len(table)):
        total += _rows(name, table[numbers[0] : numbers[-1] + 1], numbers)
    return total


def _head(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return _salt(f"{name} {dtype.str} {shape}")


def _blocks(length: int) -> Iterator[NDArray[np.int64]]:
    """The row numbers of a table, as many as are hashed at once."""
    for start in range(0, length, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, length), dtype=np.int64)


def _rows(name: str, values: NDArray[Any], numbers: NDArray[np.int64]) -> int:
    """Sum of the rows' hashes; values: (n, width), numbers: (n,) where they stand in the array."""
    if not values.size:
        return 0
    words = _words(values)
    salt = np.uint64(_salt(f"{name} {values.dtype.str} {values.shape[1]}"))
    factors = _multipliers(words.shape[1])
    total = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        mixed = (block ^ (block >> np.uint64(32))) @ factors  # or two flipped signs would cancel
        mixed += numbers[start : start + _BLOCK].astype(np.uint64) * _GOLDEN + salt
        total += int(_finish(mixed).sum(dtype=np.uint64))
    return total


def _words(values: NDArray[Any]) -> Words:
    """Rows as 64-bit words, the last one filled up with zero bytes."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    if raw.shape[1] % 8:
        raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 8)))
    return raw.view(np.uint64)


@lru_cache(maxsize=64)
def _multipliers(width: int) -> Words:
    return _finish(np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)


def _finish(values: Words) -> Words:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _salt(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
