"""A time zone as a table of its changes, asked of Arrow, which also serves.

TensorFlow knows no zones. The table is what Arrow answers, so that an exported hour is the
server's even where zone files differ.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FROM: Final = int(np.datetime64("1900-01-01", "s").astype(np.int64))
UNTIL: Final = int(np.datetime64("2200-01-01", "s").astype(np.int64))
"""Seconds since 1970 that the table covers; times outside take its nearest offset."""
_STEP_S: Final = 6 * 3600  # no zone has changed twice within it
_US: Final = 1_000_000


def changes(zone: str) -> tuple[Ints, Ints]:
    """Moments of change (k,) and offsets from UTC (k + 1,), both in µs.

    The offset is `offsets[i]` for `moments[i-1] <= time < moments[i]`.
    """
    asked = np.arange(FROM, UNTIL, _STEP_S)
    offsets = _offsets(zone, asked)
    before = np.flatnonzero(np.diff(offsets))
    low, high = asked[before], asked[before + 1]
    while (high - low > 1).any():
        middle = (low + high) // 2
        old = _offsets(zone, middle) == offsets[before]
        low, high = np.where(old, middle, low), np.where(old, high, middle)
    return high * _US, np.append(offsets[:1], offsets[before + 1])


def _offsets(zone: str, seconds: Ints) -> Ints:
    """Offset from UTC at each moment, µs."""
    moments = pa.array(seconds * _US).cast(pa.timestamp("us", tz=zone))
    local: Ints = pc.local_timestamp(moments).cast(pa.int64()).to_numpy()
    return local - seconds * _US
