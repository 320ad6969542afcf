"""`requests.transform` in TensorFlow ops: from raw columns to the model's inputs.

Ids are int64 (-1 missing), numbers float64 (NaN missing), as there. A tensor has no nulls, so a
missing text, integer, moment or window value is said by its marker in `ABSENT`; a missing float
is NaN. Two things are subtle:

- A constant that a number is added to or divided by comes from a variable. TensorFlow's optimiser
  may join constants, `(x + a) + b` to `x + (a + b)`, or divide by multiplying, and both round
  otherwise.
- TensorFlow's `log1p` differs from libm's in the last bits of a float64. In a numeric input that
  is gone once it is a float32; a bucket's edge could lie between them. So the edges of such a
  bucket are carried back through the server's own function to the values that it is made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
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
from headrace.errors import DeclarationError
from headrace.export import hashes, zones
from headrace.export.signature import ABSENT
from headrace.model.runtime import tf
from headrace.requests import log1p

Tensor = Any  # tensorflow has no types that mypy could follow

_DAY_US: Final = 86_400_000_000
_HOUR_US: Final = 3_600_000_000
_THURSDAY: Final = 3  # 1970-01-01, where 0 is Monday
_PER_SECOND: Final = 1e6


def used(spec: LineSpec) -> list[RequestFeature]:
    """The request features that the model reads, directly or through others, in their order."""
    wanted = {*spec.model.categorical, *spec.model.numeric}
    for feature in reversed(spec.request_features):
        if feature.name in wanted:
            wanted.update(feature.inputs)
    return [feature for feature in spec.request_features if feature.name in wanted]


class Features:
    """The model's inputs of a line, as a function of tensors (n,). Holds what must be variables.

    Raises `DeclarationError` for a feature that TensorFlow cannot compute as the server does.
    """

    def __init__(self, spec: LineSpec) -> None:
        self._spec = spec
        self._features = used(spec)
        self._declared = {feature.name: feature for feature in spec.request_features}
        self._windows = {feature.name: feature for feature in spec.windows}
        self._edges = {
            f.name: self._edges_of(f) for f in self._features if isinstance(f, Bucketize)
        }
        constants = [_PER_SECOND]
        self._places: dict[str, int] = {}
        for feature in self._features:
            if isinstance(feature, Ratio | Mean):
                a, b = feature.prior
                self._places[feature.name] = len(constants)
                constants += [a, b] if isinstance(feature, Ratio) else [a * b, b]
        self.constants = np.array(constants)
        asks_the_time = any(isinstance(feature, TimePart) for feature in self._features)
        self._zone = zones.changes(spec.timezone) if asks_the_time else None

    def inputs(
        self, raw: Mapping[str, Tensor], constants: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Ids and numbers by name. `raw`: columns, `request_at` and windows; `constants`: read."""
        made = _Made(raw, self._hashed_texts(raw))
        for feature in self._features:
            made.computed[feature.name] = self._compute(feature, made, constants)
        return (
            {name: made.computed[name] for name in self._spec.model.categorical},
            {name: made.computed[name] for name in self._spec.model.numeric},
        )

    def _compute(self, feature: RequestFeature, made: _Made, constants: Tensor) -> Tensor:
        match feature:
            case TimePart(kind=kind):
                return self._time_part(kind, made.raw["request_at"])
            case Hash(of=of):
                ids = self._ids(of, made)
                return tf.where(ids < 0, ids, hashes.hash_ints(ids)) if of in made.computed else ids
            case Cross(of=parts):
                return hashes.cross([self._ids(part, made) for part in parts])
            case Bucketize(name=name):
                source, edges = self._edges[name]
                x = self._number(source, made)[:, None]
                index = tf.reduce_sum(tf.cast(x >= edges, tf.int64), 1)
                return tf.where(tf.math.is_nan(x[:, 0]), tf.constant(-1, tf.int64), index)
            case _:
                return self._compute_number(feature, made, constants)

    def _compute_number(
        self, feature: Ratio | Mean | Since | Number, made: _Made, constants: Tensor
    ) -> Tensor:
        match feature:
            case Ratio(name=name, of=(above, below)):
                a, b = self._prior(name, constants)
                numerator = self._number(above, made) + a
                return numerator / (self._number(below, made) + a + b)
            case Mean(name=name, of=(above, below)):
                added, weight = self._prior(name, constants)
                total, count = self._number(above, made) + added, self._number(below, made) + weight
                return tf.where(
                    count == 0, _nan(), total / tf.where(count == 0, tf.ones_like(count), count)
                )
            case Since(of=of):
                at, then = made.raw["request_at"], made.raw[of]
                passed = tf.cast(tf.maximum(at - then, 0), tf.float64) / constants[0]
                return tf.where((at == MISSING) | (then == MISSING), _nan(), passed)
            case Number(kind=kind, of=of):
                x = self._number(of, made)
                return tf.math.log1p(tf.where(x < 0, tf.zeros_like(x), x)) if kind == "log1p" else x

    def _prior(self, name: str, constants: Tensor) -> tuple[Tensor, Tensor]:
        at = self._places[name]
        return constants[at], constants[at + 1]

    def _time_part(self, kind: str, at_us: Tensor) -> Tensor:
        assert self._zone is not None
        moments, offsets = self._zone
        # one more, never reached: TensorFlow searches no empty sequence
        moments = np.append(moments, np.iinfo(np.int64).max)
        place = tf.searchsorted(moments, at_us, side="right")
        local = at_us + tf.gather(np.append(offsets, offsets[-1]), place)
        if kind == "hour_of_day":
            part = tf.math.floormod(local, _DAY_US) // _HOUR_US
        else:
            part = tf.math.floormod(tf.math.floordiv(local, _DAY_US) + _THURSDAY, 7)
        return tf.where(at_us == MISSING, tf.constant(-1, tf.int64), part)

    def _ids(self, name: str, made: _Made) -> Tensor:
        """What `hash64` gives of a column or window; a computed feature as it is."""
        if name in made.computed:
            return made.computed[name]
        if name in made.texts:
            return made.texts[name]
        window = self._windows.get(name)
        if window is not None and self._spec.window_kind(window) == "string":
            missing, ids = made.raw[name] == MISSING, made.raw[name]  # the kernel has hashed it
        else:
            values = self._whole(name, made)
            missing = tf.zeros_like(values, tf.bool) if self._counts(name) else values == MISSING
            ids = hashes.hash_ints(values)
        return tf.where(missing, tf.constant(-1, tf.int64), ids)

    def _number(self, name: str, made: _Made) -> Tensor:
        if name in made.computed:
            known = made.computed[name]
            if known.dtype == tf.float64:
                return known
            return tf.where(known < 0, _nan(), tf.cast(known, tf.float64))
        if self._spec.columns.get(name) == "float":
            return made.raw[name]
        values = self._whole(name, made)
        numbers = tf.cast(values, tf.float64)
        return numbers if self._counts(name) else tf.where(values == MISSING, _nan(), numbers)

    def _whole(self, name: str, made: _Made) -> Tensor:
        """A column or window of integers; a window that counts is 0 where it is missing."""
        values = made.raw[name]
        if not self._counts(name):
            return values
        return tf.where(values == MISSING, tf.constant(0, tf.int64), values)

    def _counts(self, name: str) -> bool:
        return name in self._windows and self._windows[name].empty == 0

    def _hashed_texts(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ids of the text columns that become ids: all hashed at once, which costs as one."""
        read = {n for f in self._features if isinstance(f, Hash | Cross) for n in f.inputs}
        names = [name for name in sorted(read) if self._spec.columns.get(name) == "string"]
        if not names:
            return {}
        texts = tf.concat([raw[name] for name in names], 0)
        ids = tf.where(
            texts == ABSENT["string"], tf.constant(-1, tf.int64), hashes.hash_texts(texts)
        )
        return dict(zip(names, tf.split(ids, len(names)), strict=True))

    def _edges_of(self, feature: Bucketize) -> tuple[str, NDArray[np.float64]]:
        """What a bucket is found in, and the edges there: before any `log1p`."""
        steps: list[Number] = []
        source = feature.of
        while isinstance(declared := self._declared.get(source), Number):
            steps.append(declared)
            source = declared.of
        if self._rounds_otherwise(source):
            raise DeclarationError(
                f"request_features.{feature.name}: {source!r} is computed from a log1p, which "
                "TensorFlow rounds otherwise than the server, so that a value near one of the "
                "boundaries could fall into another bucket; bucketize what the log1p is of, or "
                "leave the feature out of the model"
            )
        logs = sum(step.kind == "log1p" for step in steps)
        edges = np.array(feature.boundaries, np.float64)
        if logs:
            edges = np.array([first_reaching(edge, logs) for edge in edges])
        return source, edges

    def _rounds_otherwise(self, name: str) -> bool:
        feature = self._declared.get(name)
        if not isinstance(feature, Number | Ratio | Mean):
            return False
        is_log = isinstance(feature, Number) and feature.kind == "log1p"
        return is_log or any(self._rounds_otherwise(each) for each in feature.inputs)


class _Made:
    """What later features may read: raw tensors, ids of texts, computed features."""

    def __init__(self, raw: Mapping[str, Tensor], texts: dict[str, Tensor]) -> None:
        self.raw = raw
        self.texts = texts
        self.computed: dict[str, Tensor] = {}


def first_reaching(edge: float, logs: int) -> float:
    """The smallest float64 x with `log1p` of x, taken `logs` times by the server, >= edge.

    -inf where every number reaches it.
    """

    def reached(x: float) -> bool:
        for _ in range(logs):
            x = float(log1p(np.array([x]))[0])
        return x >= edge

    if reached(0.0):
        return -np.inf
    low, high = 0, int(np.float64(np.inf).view(np.int64))  # floats above 0 rise with their bits
    while high - low > 1:
        middle = (low + high) // 2
        if reached(float(np.int64(middle).view(np.float64))):
            high = middle
        else:
            low = middle
    return float(np.int64(high).view(np.float64))


def _nan() -> Tensor:
    return tf.constant(np.nan, tf.float64)
