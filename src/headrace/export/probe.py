"""Rows to ask two scorers about: drawn from a declaration, with everything that is odd."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace.declaration import MISSING, LineSpec
from headrace.events import ARROW_TYPES

SMALLEST, LARGEST = -(2**63) + 1, 2**63 - 1  # -2**63 says missing
_TEXTS: Final = ("", "0", "a\0b", " \n", "Ünïcødé", "12345678", "日本語", "🦊" * 9, "x" * 4096)
_INTS: Final = (0, -1, 1, SMALLEST, LARGEST)
_FLOATS: Final = (0.0, -0.0, -1.0, 5e-324, 1e12, 1e300, -1.7976931348623157e308)
_MISSING: Final = 0.15
_ODD: Final = 0.3
_YEARS_US: Final = (1_000_000_000_000_000, 2_000_000_000_000_000)  # 2001 to 2033


def rows(spec: LineSpec, size: int, seed: int) -> pa.Table:
    """Declared columns, `request_at` (int64 µs) and windows, (size,) each; some are missing."""
    draw = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    for name, kind in spec.columns.items():
        if kind == "string":
            plain = [f"{name}-{number}" for number in draw.integers(0, 50, size)]
            values = _mixed(draw, plain, _TEXTS)
        elif kind == "int":
            values = _mixed(draw, draw.integers(-3, 100, size).tolist(), _INTS)
        else:
            values = _mixed(draw, draw.normal(0, 10, size).tolist(), _FLOATS)
        missing = draw.random(size) < _MISSING
        columns[name] = pa.array(values, ARROW_TYPES[kind], mask=missing)
    at = draw.integers(*_YEARS_US, size)
    columns["request_at"] = pa.array(at)
    for window in spec.windows:
        meaning = spec.window_kind(window)
        if meaning == "moment":
            found = at - draw.integers(-5_000_000, window.window, size)
        elif meaning == "string":
            found = draw.integers(0, LARGEST, size)
        else:
            found = draw.integers(0, 1000, size)
        if window.empty == MISSING:
            found[draw.random(size) < _MISSING] = MISSING
        columns[window.name] = pa.array(found)
    return pa.table(columns)


def _mixed(draw: np.random.Generator, plain: list[Any], odd: tuple[Any, ...]) -> list[Any]:
    places = draw.integers(0, len(odd), len(plain))
    return [
        odd[place] if is_odd else value
        for value, place, is_odd in zip(plain, places, draw.random(len(plain)) < _ODD, strict=True)
    ]
