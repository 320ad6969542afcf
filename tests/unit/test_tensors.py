"""Compressed safetensors are byte for byte what the `safetensors` package writes, and are read
into their own memory or refused.
"""

from __future__ import annotations

import json
import tracemalloc
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import IntegrityError
from headrace.line import tensors
from headrace.model.delta import State, same_bits

KINDS = ("u8", "i8", "f8", "c8", "f4", "u4", "i4", "f2", "u2", "i2", "i1", "u1", "?")


def state() -> State:
    draw = np.random.default_rng(0)
    table = draw.standard_normal((30, 4), dtype=np.float32)
    return {
        "table": table,
        'rows/ïd "x"': np.array([3, 1], np.int64),
        "aslant": table.T[::2],
        "one": np.array(5, np.int64),
        "none": np.zeros((3, 0)),
        "empty": np.zeros(0, np.int64),
        **{f"of {kind}": draw.integers(0, 2, (2, 3)).astype(kind) for kind in KINDS},
    }


def packed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(raw)


def written(header: Any, data: bytes = b"") -> bytes:
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return packed(len(told).to_bytes(8, "little") + told + data)


@pytest.mark.parametrize("given_", [state(), {}], ids=["arrays", "none"])
def test_the_bytes_are_those_of_the_package(given_: State) -> None:
    whole = {name: array.copy(order="C") for name, array in given_.items()}
    assert tensors.encode(given_) == packed(safetensors.numpy.save(whole))


def test_what_was_written_is_read_into_arrays_that_can_be_written() -> None:
    found = tensors.decode(BytesIO(tensors.encode(state())))
    assert same_bits(found, state())
    for array in found.values():
        assert array.flags.writeable
        assert array.flags.owndata


def test_a_file_of_the_package_with_notes_is_read() -> None:
    whole = {name: array.copy(order="C") for name, array in state().items()}
    raw = safetensors.numpy.save(whole, metadata={"by": "another"})
    assert same_bits(tensors.decode(BytesIO(packed(raw))), state())


def test_a_table_is_in_memory_once_while_it_is_read_and_twice_while_it_is_written() -> None:
    table = {"table": np.random.default_rng(0).standard_normal((1 << 18, 16), dtype=np.float32)}
    size = table["table"].nbytes
    raw = tensors.encode(table)
    tracemalloc.start()
    try:
        found = tensors.decode(BytesIO(raw))
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        tensors.encode(found)
        wrote = tracemalloc.get_traced_memory()[1] - size
    finally:
        tracemalloc.stop()
    assert size <= read < 1.5 * size
    assert wrote < 2.5 * size  # the bytes, and what they are compressed to


ARRAY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"torn",
        tensors.encode(state())[:-20],
        packed(b"few"),
        packed(b"\xff" * 8 + b"{}"),
        written(b"[]"),
        written(b"no JSON"),
        written({"a": 1}),
        written({"a": ARRAY}, bytes(7)),
        written({"a": ARRAY}, bytes(9)),
        written({"a": {**ARRAY, "dtype": "F3"}}, bytes(8)),
        written({"a": {**ARRAY, "shape": [3]}}, bytes(8)),
        written({"a": {**ARRAY, "shape": [-1, -2]}}, bytes(8)),
        written({"a": {**ARRAY, "data_offsets": [8, 16]}}, bytes(16)),
        written({"a": ARRAY, "b": ARRAY}, bytes(16)),
        written({"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}),
    ],
)
def test_what_holds_no_arrays_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="no arrays of a state"):
        tensors.decode(BytesIO(raw))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 255), st.booleans())
def test_damage_is_refused_or_read_whatever_it_hits(place: int, flip: int, cut: bool) -> None:
    raw = bytearray(tensors.encode(state()))
    raw[place % len(raw)] ^= flip
    try:
        found = tensors.decode(BytesIO(raw[: place % len(raw)] if cut else raw))
    except IntegrityError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["F32", "a"]),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), each
            )
        ),
    )
)
def test_a_header_of_any_json_is_refused_or_read(header: Any) -> None:
    try:
        found = tensors.decode(BytesIO(written(header)))
    except IntegrityError:
        return
    assert all(array.size == 0 for array in found.values())
