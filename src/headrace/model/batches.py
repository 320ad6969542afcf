"""Rows a batch at a time, each of one shape, so that a graph is traced once. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# one shape for every request and batch job, so that a row always scores alike; a request of some
# tens of candidates fits, and four calls of 64 rows cost a batch job little more than one of 256
PREDICT_ROWS: Final = 64


def batches(rows: int, size: int) -> Iterator[slice]:
    """Places of rows, `size` at a time; the last ones may be fewer."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def padded(array: NDArray[Any], rows: int, empty: bool = False) -> NDArray[Any]:
    """Fill up to `rows`: with 0 (a weight of nothing), else with copies of the last row.

    A copy touches no row of the table that the batch does not touch anyway.
    """
    lacking = rows - len(array)
    if lacking == 0:
        return array
    filler = np.zeros_like(array[-1:]) if empty else array[-1:]
    return np.concatenate([array, np.repeat(filler, lacking, axis=0)])
