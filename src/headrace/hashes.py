"""Hashes of ids: text and integers to 63 bits, and several of them to one.

Written out for TensorFlow in `export.hashes`; a test holds both to the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import InputError

type_ = pa.types
Ints = NDArray[np.int64]
_ENCODE_FROM_ROWS: Final = 256  # below, hashing each value costs less than finding the distinct
_KEPT: Final = 1 << 16  # hashes of texts that are kept, and of how many characters at most
_KEPT_LENGTH: Final = 64
_kept: dict[Any, int] = {None: -1}


def hash64(column: pa.Array | pa.ChunkedArray) -> Ints:
    """Hash text or integers to `[0, 2^63)`, shape (n,); null is -1.

    SipHash of the UTF-8 bytes or a 64-bit finaliser of the integer (`pandas.util.hash_array`
    with its default key), shifted right by one. Raises InputError for other types.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if type_.is_null(array.type):
        return np.full(len(array), -1, dtype=np.int64)
    if type_.is_dictionary(array.type):
        array = array.dictionary_decode()
    if type_.is_large_string(array.type):
        array = array.cast(pa.string())
    text = type_.is_string(array.type)
    if not text and not type_.is_integer(array.type):
        raise InputError(
            f"hash64: a column of type {array.type} cannot be hashed; give string or int64 "
            "(wrap a float in bucketize)"
        )
    if text and len(array) >= _ENCODE_FROM_ROWS:
        encoded = array.dictionary_encode()
        distinct = np.append(
            _hashed(encoded.dictionary.to_numpy(zero_copy_only=False)), np.int64(-1)
        )
        places = encoded.indices.fill_null(len(distinct) - 1).to_numpy()
        return np.asarray(distinct[places], dtype=np.int64)
    filled = array.fill_null("" if text else 0) if array.null_count else array
    hashes = _hashed((filled if text else filled.cast(pa.int64())).to_numpy(zero_copy_only=False))
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = -1
    return hashes


def hash_texts(values: Sequence[str | None]) -> Ints:
    """`hash64` of a few texts, None where missing; most came before and are known."""
    hashes = [_kept.get(value) for value in values]
    if None in hashes:
        known = dict(zip(values, hashes, strict=True))
        new = [text for text, found in known.items() if found is None and text is not None]
        found = dict(zip(new, _hashed(np.array(new, object)).tolist(), strict=True))
        if len(_kept) > _KEPT:
            _kept.clear()
            _kept[None] = -1
        _kept.update((text, each) for text, each in found.items() if len(text) <= _KEPT_LENGTH)
        known.update(found.items())
        hashes = [known[value] for value in values]
    return np.array(hashes, np.int64)


def _hashed(values: NDArray[Any]) -> Ints:
    """Of texts as objects, or int64."""
    shifted = pd.util.hash_array(values, categorize=False) >> np.uint64(1)
    return np.asarray(shifted).astype(np.int64)


def cross64(parts: Sequence[Ints]) -> Ints:
    """Mix ids, each of shape (n,), into one id in `[0, 2^63)`; the order of the parts counts.

    Never -1: a missing part (-1) is a value of its own. Each step is the finaliser of
    splitmix64 (Steele, Lea and Flood 2014), a bijection of the state for a given part.
    """
    state = np.full(len(parts[0]), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for part in parts:
        state ^= np.ascontiguousarray(part, dtype=np.int64).view(np.uint64)
        state += np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(30)
        state *= np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(1)).view(np.int64)
