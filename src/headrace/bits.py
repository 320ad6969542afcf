"""When two values are the same: by their 64 bits. Pure."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def bits(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Numbers or times without nulls as 64-bit patterns, shape (n,).

    A missing float is one pattern, whether it is stored as null or as a NaN of any payload;
    0.0 and -0.0 are two.
    """
    if not pa.types.is_floating(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
    values = np.asarray(pc.fill_null(column, math.nan).to_numpy(), dtype=np.float64)
    patterns: NDArray[np.int64] = np.where(np.isnan(values), np.nan, values).view(np.int64)
    return patterns
