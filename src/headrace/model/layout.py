"""Widths that follow from a declaration, and what a fresh model of them starts with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec
from headrace.model.ids import first_capacity
from headrace.model.inputs import mixed_keys
from headrace.model.network import Network

ADAGRAD_START = 0.1
EMBEDDING_DEVIATION = 0.01
_DRAW = np.uint64(0xD6E8FEB86659FD93)
_ROWS_AT_ONCE: Final = 1 << 14


@dataclass(frozen=True)
class Layout:
    """Widths that follow from a declaration."""

    linear: bool
    deep: bool
    fields: int
    wide: int
    columns: int
    dim: int
    tasks: int = 1

    @classmethod
    def of(cls, spec: ModelSpec, tasks: int = 1) -> Layout:
        """Layout of a declared model; `columns` counts the dense inputs (see Statistics.design)."""
        deep = spec.family != "ftrl"
        return cls(
            linear=spec.family in ("ftrl", "ftrl_deep"),
            deep=deep,
            fields=len(spec.embedded),
            wide=len(spec.wide),
            columns=1 + 2 * len(spec.numeric),
            dim=spec.embedding_dim if deep else 0,
            tasks=tasks,
        )

    @property
    def row_width(self) -> int:
        """float32 numbers in one row of the table."""
        return 2 * self.linear * self.tasks + 2 * self.dim

    @property
    def weights(self) -> slice:
        """Where a row's embedding stands."""
        start = 2 * self.linear * self.tasks
        return slice(start, start + self.dim)


def fresh_rows(layout: Layout, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """What the rows of dynamic ids start with: a function of their keys, like a drawn weight."""
    rows = np.zeros((keys.size, layout.row_width), np.float32)
    if layout.deep:
        places = np.arange(layout.dim, dtype=np.int64)[:, None] + keys.view(np.int64)
        draws = mixed_keys(list(places), np.full(layout.dim, _DRAW)).T >> np.uint64(40)
        uniform = draws.astype(np.float32) * np.float32(2**-23) - np.float32(1)
        rows[:, layout.weights] = uniform * np.float32(EMBEDDING_DEVIATION * 3**0.5)
        rows[:, layout.weights.stop :] = ADAGRAD_START
    return rows


def drawn_rows(layout: Layout, length: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """What the rows of hashed ids start with, in order and some at a time, (n, row_width)."""
    draw = np.random.default_rng([seed, 1])
    for rows in some_at_a_time(length):
        table = np.zeros((rows.stop - rows.start, layout.row_width), np.float32)
        weights = draw.standard_normal((len(table), layout.dim), dtype=np.float32)
        table[:, layout.weights] = weights * np.float32(EMBEDDING_DEVIATION)
        table[:, layout.weights.stop :] = ADAGRAD_START
        yield table


def some_at_a_time(length: int) -> Iterator[slice]:
    """The rows of a table in parts small enough to hand over while others wait for Python.

    A table of 10 million rows given to TensorFlow at once stops every thread for seconds.
    """
    for start in range(0, length, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, length))


def table_shapes(spec: ModelSpec, tasks: int = 1) -> dict[str, tuple[int, int]]:
    """Names and shapes of a fresh model's tables, all float32."""
    layout = Layout.of(spec, tasks)
    hashed = 1 << spec.table_bits
    length = first_capacity(layout.fields) if spec.ids == "dynamic" else hashed
    wide = {"wide": (hashed, 2 * tasks)} if layout.wide else {}
    return {"table": (length, layout.row_width), **wide}


def initial_arrays(spec: ModelSpec, seed: int, tasks: int = 1) -> dict[str, NDArray[Any]]:
    """The TensorFlow part of a fresh state without its tables; NumPy generators, so a seed means
    the same bytes.
    """
    layout = Layout.of(spec, tasks)
    dense = np.zeros(0, np.float32)
    if layout.deep:
        towers = [Network.of(spec, layout.columns, task).initial(seed) for task in range(tasks)]
        dense = np.concatenate(towers)
    return {
        "linear": np.zeros((layout.columns if layout.linear else 0, 2 * tasks), np.float32),
        "dense": dense,
        "dense_m": np.zeros_like(dense),
        "dense_v": np.zeros_like(dense),
    }
