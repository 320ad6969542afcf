"""A place for the arrays of a prediction that TensorFlow reads where they are, without a copy.

To hand a small array over costs more than to compute with it: memory is asked for, filled, and
given back, for each of them in each request. Here both have a place for good, one for each thread.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.model.runtime import tf

Tensor = Any  # tensorflow has no types that mypy could follow
_ALIGNED: Final = 64  # bytes: TensorFlow's kernels end the process over other addresses


class Place(threading.local):
    """Arrays of `rows` rows, and the tensors that are the same memory; each thread has its own.

    A tensor holds what was put into its array last: it is read within the call that it is given
    to, and nowhere later.
    """

    def __init__(self, rows: int, fields: int, columns: int) -> None:
        self._ids = _aligned(rows, fields, np.dtype(np.int32))
        self._columns = _aligned(rows, columns, np.dtype(np.float32))
        self._tensors = [_shared(self._ids), _shared(self._columns)]

    def put(self, ids: NDArray[np.int32], columns: NDArray[np.float32]) -> list[Tensor]:
        """Both tensors, with these rows, one at least.

        Behind them copies of the last ids, which touch no row of the table that the batch does not
        touch anyway, and whatever columns came before.
        """
        size = len(columns)
        self._ids[:size] = ids
        self._ids[size:] = ids[-1]
        self._columns[:size] = columns
        return self._tensors


def _aligned(rows: int, width: int, kind: np.dtype[Any]) -> NDArray[Any]:
    size = rows * width * kind.itemsize
    raw = np.zeros(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size].view(kind).reshape(rows, width)


def _shared(array: NDArray[Any]) -> Tensor:
    if not array.size:
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
