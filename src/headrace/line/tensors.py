"""Safetensors, compressed: the bytes of the `safetensors` package without its copies.

It returns each array as a copy made while every other thread waits for Python, seconds for one
of gigabytes, and writes through two. Here a file is decompressed into the arrays themselves, piece
by piece, and an array is written from where it lies.

The format: 8 bytes with the length of the header, little-endian; the header, JSON by name of
`dtype`, `shape` and `data_offsets`, filled up with spaces to a multiple of 8; the arrays, C order,
the widest types first and then by name.
"""

from __future__ import annotations

import json
from io import BufferedReader, BytesIO
from math import prod
from typing import IO, Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from headrace.errors import IntegrityError
from headrace.model.delta import State

# Weights are noise to a compressor: a higher level takes twice the time for 0.1% fewer bytes.
_LEVEL: Final = 1
_PIECE: Final = 1 << 20  # bytes read at once
_LARGEST_READ: Final = 1 << 24
_LONGEST_FRAME_HEADER: Final = 18  # bytes, by zstd's format
_LONGEST_HEADER: Final = 100_000_000  # bytes, as the package has it
_WRONG: Final = (
    zstandard.ZstdError,
    *(ValueError, KeyError, TypeError, AttributeError),
    *(MemoryError, OverflowError, RecursionError),
)
# in the order in which the arrays stand
_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES: Final = {dtype: name for name, dtype in _TYPES.items()}


def encode(state: State) -> bytes:
    """Arrays as zstd-compressed safetensors; equal states give equal bytes."""
    ranks = {dtype: rank for rank, dtype in enumerate(_NAMES)}
    ordered = sorted(state, key=lambda name: (ranks[state[name].dtype], name))
    header, end = {}, 0
    for name in ordered:
        array, start = state[name], end
        end += array.nbytes
        about = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": (start, end)}
        header[name] = about
    told = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    raw = np.empty(8 + len(told) + end, np.uint8)
    head = len(told).to_bytes(8, "little") + told
    raw[: len(head)] = np.frombuffer(head, np.uint8)
    at = len(head)
    for name in ordered:
        array = state[name]
        raw[at : at + array.nbytes] = _bytes_of(np.asarray(array, order="C"))
        at += array.nbytes
    # in one piece: a stream of pieces compresses to other bytes
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw.data)


def decode(file: BufferedReader | BytesIO) -> State:
    """The arrays of a file that can seek; writable, each in memory of its own.

    Raises `IntegrityError` when it holds something else.
    """
    try:
        size = zstandard.get_frame_parameters(file.read(_LONGEST_FRAME_HEADER)).content_size
        file.seek(0)
        with zstandard.ZstdDecompressor().stream_reader(file, _PIECE, closefd=False) as stream:
            length = int.from_bytes(_filled(stream, np.empty(8, np.uint8)).tobytes(), "little")
            if length > min(size, _LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(_filled(stream, np.empty(length, np.uint8)).tobytes())
            header.pop("__metadata__", None)
            places = _places(header, size - 8 - length)
            return {name: _filled(stream, np.empty(shape, dtype)) for name, dtype, shape in places}
    except _WRONG as problem:
        raise IntegrityError(f"no arrays of a state: {problem}") from None


def _places(header: dict[str, Any], size: int) -> list[tuple[str, np.dtype[Any], list[int]]]:
    """Name, dtype and shape of the arrays as they stand, which must fill `size` bytes."""
    found, end = [], 0
    for name, about in sorted(header.items(), key=lambda each: each[1]["data_offsets"]):
        dtype, shape = _TYPES[about["dtype"]], about["shape"]
        start, end = end, end + dtype.itemsize * prod(shape)
        if about["data_offsets"] != [start, end]:
            raise ValueError(f"{name!r} stands at {about['data_offsets']}, not at {[start, end]}")
        found.append((name, dtype, shape))
    if end != size:
        raise ValueError(f"arrays of {end} bytes in {size}")
    return found


def _filled(stream: IO[bytes], array: NDArray[Any]) -> NDArray[Any]:
    """The array with the next bytes of the stream."""
    rest = _bytes_of(array).data
    while rest:
        count = stream.readinto(rest[:_LARGEST_READ])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("the file ends too soon")
        rest = rest[count:]
    return array


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The memory of an array in C order."""
    return array.reshape(-1).view(np.uint8)
