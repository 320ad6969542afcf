"""Request-time features: the only copy, called online by the server and offline by Feast.

A row's answer depends on that row alone, so one row and many give the same bits. Where a
library's vector path could round differently from its scalar path (`log1p`), the scalar one
is used for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import (
    MISSING,
    Bucketize,
    Cross,
    Hash,
    LineSpec,
    Mean,
    Number,
    Ratio,
    RequestFeature,
    Since,
    TimePart,
)
from headrace.events import input_fields
from headrace.hashes import cross64, hash64
from headrace.raw import Candidates, raw_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, Ints | Floats]
_FEW_ROWS = 1024  # so few fit the processor's cache
_KNOWN_LOGS = 1 << 14  # logarithms that are kept: most counts are small
_TIME_PARTS: dict[str, Callable[..., pa.Array]] = {
    "hour_of_day": pc.hour,
    "day_of_week": pc.day_of_week,  # 0 is Monday
}


def _rehash(ids: Ints) -> Ints:
    return np.where(ids < 0, np.int64(-1), hash64(pa.array(ids)))


def _bucket(x: Floats, boundaries: Sequence[float]) -> Ints:
    index = np.searchsorted(np.asarray(boundaries), x, side="right")
    return np.where(np.isnan(x), np.int64(-1), index)


def log1p(x: Floats) -> Floats:
    """`log1p(max(x, 0))`, shape (n,), by libm."""
    # NumPy's log1p picks a SIMD or a scalar routine by array layout and processor; Arrow's
    # calls libm for every element
    return np.asarray(pc.log1p(pa.array(np.maximum(x, 0.0))).to_numpy(zero_copy_only=False))


@lru_cache(maxsize=1)
def _logs_of_counts() -> Floats:
    return log1p(np.arange(_KNOWN_LOGS, dtype=np.float64))


def transform(spec: LineSpec, table: pa.Table) -> pa.Table:
    """Compute the model's inputs: columns `events.input_fields(spec)` in order, one row each.

    `table` holds the declared columns, `request_at` (int64 µs or a UTC timestamp) and the
    window features (int64; null means that the key was never seen: the feature's `empty`, which
    is 0 or `MISSING`). Ids are int64 with -1 for missing, numbers float64 with NaN for missing.
    Raises InputError for an absent column or one of the wrong type.
    """
    computed = compute(spec, table, {})
    fields = input_fields(spec)
    arrays = [pa.array(computed[field.name], type=field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def compute(
    spec: LineSpec,
    rows: pa.Table | Candidates,
    windows: Mapping[str, Ints],
    begun: Computation | None = None,
) -> Columns:
    """The columns of `transform` as arrays, for who has window features as arrays too.

    `windows`: values (n,) by name, `empty` where the key was never seen; those that are not
    there are columns of a table. `begun`: a computation of the same rows, perhaps ahead of them.
    """
    work = begun or Computation(spec, rows)
    work.take(windows)
    for feature in spec.request_features:
        if feature.name not in work.computed:
            work.add(feature)
    return work.computed


def _part(kind: str, timezone: str, at_us: pa.Array) -> pa.Array:
    return _TIME_PARTS[kind](at_us.cast(pa.timestamp("us", tz=timezone))).cast(pa.int64())


@lru_cache(maxsize=64)
def _part_of_second(kind: str, timezone: str, at_s: int) -> int:
    """The part of all moments of a second: zones differ by whole seconds."""
    part: int = _part(kind, timezone, pa.array([at_s * 1_000_000]))[0].as_py()
    return part


class Computation:
    """Features of some rows, and what later ones may read: raw columns, windows and computed ones,
    all (n,).
    """

    def __init__(self, spec: LineSpec, rows: pa.Table | Candidates) -> None:
        self._spec = spec
        self._raw = raw_of(spec, rows)
        self._declared = spec.window_features
        self._windows: dict[str, Ints] = {}
        self._ids: dict[str, Ints] = {}
        self.computed: Columns = {}

    def go_ahead(self) -> None:
        """Compute what needs no window, while those are still on their way.

        What fails here is left to `compute`, where it fails again and is told.
        """
        try:
            for feature in self._spec.foreseen:
                self.add(feature)
        except Exception:  # noqa: BLE001 - of any kind, and not lost
            self.computed.clear()

    def take(self, windows: Mapping[str, Ints]) -> None:
        """The window features that came."""
        self._windows |= windows

    def add(self, feature: RequestFeature) -> None:
        self.computed[feature.name] = self._compute(feature)

    def _compute(self, feature: RequestFeature) -> Ints | Floats:
        match feature:
            case Number() | Ratio() | Mean() | Since():
                return self._compute_number(feature)
            case TimePart(kind=kind):
                return self._time_part(kind)
            case Hash(of=of):
                ids = self._id(of, feature.name)
                return _rehash(ids) if of in self.computed else ids
            case Cross(of=parts):
                return cross64([self._id(part, feature.name) for part in parts])
            case Bucketize(of=of, boundaries=boundaries):
                return _bucket(self._number(of, feature.name), boundaries)

    def _compute_number(self, feature: Ratio | Mean | Since | Number) -> Floats:
        match feature:
            case Number(kind="log1p", of=of):
                return self._log(of, feature.name)
            case Number(of=of):
                return self._number(of, feature.name)
            case Ratio(of=(above, below), prior=(a, b)):
                numerator = self._number(above, feature.name) + a
                return numerator / (self._number(below, feature.name) + a + b)
            case Mean(of=(above, below), prior=(mean, weight)):
                total = self._number(above, feature.name) + mean * weight
                count = self._number(below, feature.name) + weight
                result = np.full(len(total), np.nan)
                np.divide(total, count, out=result, where=count != 0)
                return result
            case Since(of=of):
                then_us, (now_us, missing) = self._window(of, feature.name), self._raw.moments()
                passed = (now_us - then_us).astype(np.float64)
                passed[then_us == MISSING] = np.nan
                if missing is not None:
                    passed[missing] = np.nan
                return np.asarray(np.maximum(passed, 0.0) / 1e6)

    def _log(self, name: str, user: str) -> Floats:
        """`log1p` of a number; of few rows for all windows at once, for a call costs 10 µs."""
        if name not in self._declared or self._raw.num_rows > _FEW_ROWS:
            return log1p(self._number(name, user))
        asked = [f for f in self._spec.request_features if f.kind == "log1p"]
        users = {f.of: f.name for f in asked if f.of in self._declared}
        values = np.array([self._window(window, users[window]) for window in users])
        logs: dict[str, Floats] = dict(zip(users, self._logs_of(values, users), strict=True))
        self.computed |= {f.name: logs[f.of] for f in asked if f.of in users}
        return logs[name]

    def _logs_of(self, values: Ints, users: Mapping[str, str]) -> Floats:
        """`log1p` of the values (windows, n); those of small counts are known."""
        if values.min(initial=0) >= 0 and values.max(initial=0) < _KNOWN_LOGS:
            return _logs_of_counts()[values]
        numbers = [self._number(window, user) for window, user in users.items()]
        return log1p(np.concatenate(numbers)).reshape(values.shape)

    def _time_part(self, kind: str) -> Ints:
        if (moment := self._raw.moment()) is not None:  # as online
            part = _part_of_second(kind, self._spec.timezone, moment // 1_000_000)
            return np.full(self._raw.num_rows, part)
        at_us, missing = self._raw.moments()
        parts = _part(kind, self._spec.timezone, pa.array(at_us, mask=missing))
        return np.asarray(parts.fill_null(-1).to_numpy())

    def _id(self, name: str, user: str) -> Ints:
        known = self.computed.get(name)
        if known is None:
            if name not in self._ids:
                self._ids[name] = self._raw_id(name, user)
            return self._ids[name]
        return known.astype(np.int64, copy=False)

    def _raw_id(self, name: str, user: str) -> Ints:
        window = self._declared.get(name)
        if window is None:
            return self._raw.ids(name, user)
        values = self._window(name, user)
        hashed = self._spec.window_kind(window) == "string"  # by the kernel
        ids = values if hashed else hash64(pa.array(values))
        return ids if window.empty == 0 else np.where(values == MISSING, np.int64(-1), ids)

    def _number(self, name: str, user: str) -> Floats:
        known = self.computed.get(name)
        if known is None and name in self._declared:
            values = self._window(name, user)
            number = values.astype(np.float64)  # rounds as Arrow's cast does
            if self._declared[name].empty == MISSING:
                number[values == MISSING] = np.nan
            return number
        if known is None:
            return self._raw.numbers(name, user)
        if known.dtype == np.int64:
            return np.where(known < 0, np.nan, known.astype(np.float64))
        return known.astype(np.float64, copy=False)

    def _window(self, name: str, user: str) -> Ints:
        """A window feature's values, `empty` where the key was never seen."""
        if name not in self._windows:
            self._windows[name] = self._raw.window(name, user)
        return self._windows[name]
