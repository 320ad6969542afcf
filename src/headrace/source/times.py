"""When things in a file happened and became known: local clocks to UTC, and drawn label delays.

Values in, values out. Times are int64 microseconds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import DelayDistribution
from headrace.hashes import hash64

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def to_utc(
    clock_us: NDArray[np.int64], zoned: NDArray[np.bool_], timezone: str
) -> NDArray[np.int64]:
    """UTC microseconds of wall-clock readings; where `zoned`, the reading already is UTC.

    An hour that the clocks repeat means its first pass, an hour that they skip means the
    first instant after it, so every reading has exactly one time.
    """
    if timezone == "UTC" or bool(zoned.all()):
        return clock_us
    local = pc.assume_timezone(
        pa.array(clock_us, pa.timestamp("us")),
        timezone,
        ambiguous="earliest",
        nonexistent="latest",
    )
    utc = local.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(np.where(zoned, clock_us, utc))


def draw_delays(impression_id: pa.Array, delay: DelayDistribution) -> NDArray[np.int64]:
    """One log-normal delay in microseconds for each id.

    Drawn from the hash of the id and the seed (splitmix64, then Box-Muller), so the delay of an
    impression depends neither on the order of the rows nor on which others are there.
    """
    ids = hash64(impression_id).astype(np.uint64)
    first = _splitmix64(ids ^ _splitmix64(np.full(1, delay.seed, dtype=np.uint64)))
    second = _splitmix64(first)
    # the upper 53 bits, moved half a step off zero so that the logarithm is finite
    uniform_1 = ((first >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    uniform_2 = (second >> np.uint64(11)).astype(np.float64) / 2.0**53
    normal = np.sqrt(-2.0 * np.log(uniform_1)) * np.cos(2.0 * np.pi * uniform_2)
    drawn = np.rint(delay.median * np.exp(delay.sigma * normal))
    return np.asarray(np.minimum(drawn, 2.0**53), dtype=np.int64)


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        mixed = values + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))
