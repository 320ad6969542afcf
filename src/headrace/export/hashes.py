"""The ids of `headrace.hashes` and the keys of `model.inputs`, bit for bit, in TensorFlow ops.

Ids are int64 tensors; inside, 64-bit states are uint64, which TensorFlow adds and multiplies
modulo 2^64 as NumPy does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from headrace.model.runtime import tf

Tensor = Any  # tensorflow has no types that mypy could follow

_GOLDEN: Final = 0x9E3779B97F4A7C15
_FACTORS: Final = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_KEY: Final = b"0123456789123456"  # of pandas.util.hash_array
_STATE: Final = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def finalise(state: Tensor) -> Tensor:
    """splitmix64's finaliser of a uint64 tensor, a bijection."""
    for shift, factor in _FACTORS:
        state = _xor(state, _right(state, shift)) * _word(factor)
    return _xor(state, _right(state, 31))


def hash_ints(values: Tensor) -> Tensor:
    """`headrace.hashes.hash64` of int64 numbers, none of them missing."""
    return _id(finalise(tf.bitcast(values, tf.uint64)))


def hash_texts(texts: Tensor) -> Tensor:
    """`headrace.hashes.hash64` of a string tensor (n,): SipHash-2-4 of the UTF-8 bytes, finalised.

    Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012. The longest text decides how
    many words all of them are read in; a text that has ended keeps its state.
    """
    length = tf.cast(tf.strings.length(texts), tf.int64)
    whole = length // 8
    words = tf.reduce_max(tf.concat([whole, [0]], 0)) + 1
    padded = tf.io.decode_raw(texts, tf.int64, fixed_length=tf.cast(8 * words, tf.int32))
    message = tf.bitcast(padded, tf.uint64)
    last = _left(tf.bitcast(length, tf.uint64), 56)

    def absorb(at: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        word = message[:, at]
        word = tf.where(at == whole, tf.bitwise.bitwise_or(word, last), word)
        new = _rounds((*state[:3], _xor(state[3], word)), 2)
        new = (_xor(new[0], word), *new[1:])
        held = zip(new, state, strict=True)
        return at + 1, *(tf.where(at <= whole, after, before) for after, before in held)

    keys = [int.from_bytes(_KEY[:8], "little"), int.from_bytes(_KEY[8:], "little")] * 2
    start = [
        tf.fill(tf.shape(texts), _word(key ^ state))
        for key, state in zip(keys, _STATE, strict=True)
    ]
    _, *state = tf.while_loop(
        lambda at, *_: at < words, absorb, [tf.zeros([], tf.int64), *start], parallel_iterations=1
    )
    state[2] = _xor(state[2], tf.fill(tf.shape(texts), _word(0xFF)))
    one, two, three, four = _rounds(tuple(state), 4)
    return _id(finalise(_xor(_xor(one, two), _xor(three, four))))


def cross(parts: Sequence[Tensor]) -> Tensor:
    """`headrace.hashes.cross64`: ids (n,) mixed into one; the order of the parts counts."""
    state = tf.fill(tf.shape(parts[0]), _word(_GOLDEN))
    for part in parts:
        state = finalise(_xor(state, tf.bitcast(part, tf.uint64)) + _word(_GOLDEN))
    return _id(state)


def keys(ids: Tensor, salts: Tensor) -> Tensor:
    """`model.inputs.mixed_keys` of ids (n, fields): uint64 of that shape. `salts`: (fields,)."""
    return finalise(tf.bitcast(ids, tf.uint64) + salts)


def rows(mixed: Tensor, bits: int) -> Tensor:
    """Rows of a table of 2**bits that keys lead to, int64."""
    return tf.bitcast(_right(mixed, 64 - bits), tf.int64)


def _rounds(state: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 += v1
        v1 = _xor(_turned(v1, 13), v0)
        v0 = _turned(v0, 32)
        v2 += v3
        v3 = _xor(_turned(v3, 16), v2)
        v0 += v3
        v3 = _xor(_turned(v3, 21), v0)
        v2 += v1
        v1 = _xor(_turned(v1, 17), v2)
        v2 = _turned(v2, 32)
    return v0, v1, v2, v3


def _id(state: Tensor) -> Tensor:
    return tf.bitcast(_right(state, 1), tf.int64)


def _turned(state: Tensor, bits: int) -> Tensor:
    return tf.bitwise.bitwise_or(_left(state, bits), _right(state, 64 - bits))


def _xor(one: Tensor, other: Tensor) -> Tensor:
    return tf.bitwise.bitwise_xor(one, other)


def _left(state: Tensor, bits: int) -> Tensor:
    return tf.bitwise.left_shift(state, _word(bits))


def _right(state: Tensor, bits: int) -> Tensor:
    return tf.bitwise.right_shift(state, _word(bits))


def _word(value: int) -> Tensor:
    return tf.constant(np.uint64(value))
