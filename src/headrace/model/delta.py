"""What changed between two model states, in NumPy alone.

A state is a flat dict of arrays. Of a 2-D array of unchanged shape and dtype a delta keeps the
rows whose bits differ; of everything else that changed it keeps the whole array. Comparison is
by bits, never by value: -0.0 and 0.0 differ, equal NaNs do not, so `apply(parent,
diff(parent, child))` gives the child's bytes.

Keys of a delta: `rows/<name>` (int64 row numbers, ascending) with `values/<name>` (the new rows),
`whole/<name>`, and `gone/<name>` for an array that the child no longer has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import IntegrityError

State = dict[str, NDArray[Any]]
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_UNFIT = "the delta of {!r} does not fit its parent state; load the version from a base"


def diff(parent: State, child: State) -> State:
    """The delta that turns `parent` into `child`; empty when their bits are equal."""
    delta: State = {}
    for name in sorted(child):
        _diff_array(name, parent.get(name), child[name], delta)
    for name in sorted(set(parent) - set(child)):
        delta[f"gone/{name}"] = np.empty(0, np.int64)
    return delta


def apply(parent: State, delta: State) -> State:
    """A new state, bit-equal to the child that `delta` was made from; `parent` is not written to.

    Arrays without changes are shared with `parent`. Raises `IntegrityError` when the delta does
    not fit the parent.
    """
    state = {n: array.copy() if f"rows/{n}" in delta else array for n, array in parent.items()}
    go_on(state, delta)
    return state


def go_on(state: State, delta: State) -> None:
    """The same in place, in time of what the delta holds, for who owns the state's arrays.

    Where it raises, the state is neither the one nor the other.
    """
    for key, array in delta.items():
        kind, _, name = key.partition("/")
        if kind == "whole":
            state[name] = array
        elif kind == "gone":
            state.pop(name, None)
        elif kind == "rows":
            _write_rows(name, state, array, delta.get(f"values/{name}"))
        elif kind != "values":
            raise IntegrityError(f"delta key {key!r} is unknown; publish a new base")


def same_bits(left: State, right: State) -> bool:
    """Whether two states have the same arrays, shapes, dtypes and bits."""
    return left.keys() == right.keys() and not diff(left, right)


def _diff_array(name: str, old: NDArray[Any] | None, new: NDArray[Any], delta: State) -> None:
    if old is None or old.shape != new.shape or old.dtype != new.dtype:
        delta[f"whole/{name}"] = new
        return
    changed = _bits(old) != _bits(new)
    if not changed.any():
        return
    if new.ndim != 2:
        delta[f"whole/{name}"] = new
        return
    rows = np.flatnonzero(changed.any(axis=1)).astype(np.int64)
    if rows.size * 2 > len(new):  # the row numbers would cost more than they save
        delta[f"whole/{name}"] = new
        return
    delta[f"rows/{name}"] = rows
    delta[f"values/{name}"] = new[rows]


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(_UNSIGNED[array.dtype.itemsize])


def _write_rows(name: str, state: State, rows: NDArray[Any], values: NDArray[Any] | None) -> None:
    array = state.get(name)
    if array is None:
        raise IntegrityError(_UNFIT.format(name))
    array[rows] = check_rows(name, array.shape, array.dtype, rows, values)


def check_rows(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | type,
    rows: NDArray[Any],
    values: NDArray[Any] | None,
) -> NDArray[Any]:
    """The values, which must be rows of a parent of that shape and dtype, or `IntegrityError`."""
    if (
        values is None
        or len(shape) != 2
        or values.dtype != dtype
        or values.shape != (rows.size, shape[1])
        or (rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < shape[0])
    ):
        raise IntegrityError(_UNFIT.format(name))
    return values
