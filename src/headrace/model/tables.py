"""The tables of ids in TensorFlow: which row an id has, what was touched, growth.

`table` holds the rows of embedded ids (of all ids where there is no network), `wide` those of
`wide` ids. Hashed ids are mixed with their field's salt into a power of two of rows; dynamic
ones (`table` only) have rows of their own, see `ids`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec
from headrace.errors import IntegrityError
from headrace.model.delta import State, check_rows
from headrace.model.ids import DynamicIds, Keys, first_capacity
from headrace.model.inputs import field_salt, mix, mixed_keys, rows_between
from headrace.model.layout import Layout, drawn_rows, fresh_rows, some_at_a_time
from headrace.model.runtime import tf

Columns = Sequence[NDArray[Any]]


class Tables:
    """The rows of a model's ids, over variables of zeros that the graph reads and writes.

    With `blank` hashed rows stay zeros, for a state that is loaded before anything else.
    """

    def __init__(
        self,
        spec: ModelSpec,
        seed: int,
        variables: dict[str, Any],
        tasks: int = 1,
        blank: bool = False,
    ):
        self._layout = Layout.of(spec, tasks)
        self._bits = spec.table_bits
        self.fields = (*spec.embedded, *spec.wide)
        self._salts = np.array([field_salt(seed, field) for field in self.fields], np.uint64)
        self._variables = {n: v for n, v in variables.items() if n in ("table", "wide")}
        self._lengths = {
            n: int(v.shape[0] or first_capacity(self._layout.fields))
            for n, v in self._variables.items()
        }
        self._ids: DynamicIds | None = None
        if spec.ids == "dynamic":
            self._ids = DynamicIds(len(spec.embedded), spec.admit_after, spec.expire_after)
            everyone = np.concatenate([self._embedded_salts, ~self._embedded_salts])
            self._write("table", np.arange(everyone.size), fresh_rows(self._layout, everyone))
        elif self._layout.deep and not blank:
            self._fill("table", drawn_rows(self._layout, self._lengths["table"], seed))
        self.mark()

    @property
    def _embedded_salts(self) -> Keys:
        return self._salts[: self._layout.fields]

    def rows(self, ids: Columns, part: slice) -> NDArray[np.int32]:
        """Rows (n, fields) of a part of id columns, each int64, to predict with."""
        if not ids:
            return np.empty((part.stop - part.start, 0), np.int32)
        ids = rows_between(ids, part)
        if self._ids is None:
            return mix(ids, self._salts, self._bits)
        return self._with_wide(self._ids.rows(*self._keys(ids)), ids)

    def rows_to_learn(
        self, ids: Columns, part: slice, counted: NDArray[np.bool_], at_us: int
    ) -> NDArray[np.int32]:
        """The same for a batch about to be learned: dynamic ids are counted and admitted.

        counted: (n,), whether a row is one more look at its ids; at_us: event time of the newest
        counted row, which only expiry asks for.
        """
        if self._ids is None or not ids:
            rows = self.rows(ids, part)
        else:
            ids = rows_between(ids, part)
            rows, fresh, keys = self._ids.see(*self._keys(ids), counted, at_us)
            self._grow()
            if fresh.size:
                self._write("table", fresh, fresh_rows(self._layout, keys))
            rows = self._with_wide(rows, ids)
        self._touched["table"][rows[:, : self._layout.fields].ravel()] = True
        if "wide" in self._variables:
            self._touched["wide"][rows[:, self._layout.fields :].ravel()] = True
        return rows

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tables in a state."""
        return tuple(self._variables)

    def length(self, name: str) -> int:
        """Rows of a table."""
        return self._lengths[name]

    def parts(self, name: str) -> Iterator[Any]:
        """A table as tensors of some rows each, in order. No reading copies it whole."""
        for rows in some_at_a_time(self._lengths[name]):
            yield self._variables[name].sparse_read(np.arange(rows.start, rows.stop))

    def read(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a table as they are now. Raises `IntegrityError` for one that it lacks."""
        length = self._lengths[name]
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < length:
            raise IntegrityError(f"{name!r} has rows 0 to {length - 1}; load a base")
        rows: NDArray[np.float32] = self._variables[name].sparse_read(numbers).numpy()
        return rows

    def state(self) -> State:
        """Copies of the tables, and of the map of dynamic ids."""
        tables: State = {name: self._whole(name) for name in self._variables}
        return tables if self._ids is None else {**tables, **self._ids.state()}

    def check(self, state: State) -> None:
        """Raise `IntegrityError` unless the tables of a state fit."""
        for name, variable in self._variables.items():
            array, (length, width) = state.get(name), self._shape(name)
            if self._ids is not None and name == "table" and array is not None and array.ndim == 2:
                length = len(array)
                self._ids.check(state, length)
            dtype = np.dtype(variable.dtype.as_numpy_dtype)
            if array is None or array.shape != (length, width) or array.dtype != dtype:
                found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise IntegrityError(
                    f"state array {name!r}: expected {dtype}[{length}, {width}], found {found}; "
                    "load another version or run a full retrain"
                )

    def load(self, state: State) -> None:
        """Take over the tables of a checked state; sets the mark."""
        for name in self._variables:
            array = state[name]
            self._have_length(name, len(array))
            self._fill(name, (array[rows] for rows in some_at_a_time(len(array))))
        if self._ids is not None:
            self._ids.load(state, self._lengths["table"])
        self.mark()

    def load_beside(self, other: Tables, rest: State) -> None:
        """Take over the tables of a model of the same declaration, and the map of ids in `rest`.

        Raises `IntegrityError` unless that map is one into its table.
        """
        if self._ids is not None:
            self._ids.check(rest, other.length("table"))
        for name in self._variables:
            self._have_length(name, other.length(name))
            self._fill(name, other.parts(name))
        if self._ids is not None:
            self._ids.load(rest, self._lengths["table"])
        self.mark()

    def mark(self) -> None:
        """Let `delta` count from here."""
        self._touched = {n: np.zeros(self._shape(n)[0], np.bool_) for n in self._variables}
        self._grown = False
        if self._ids is not None:
            self._ids.mark()

    def delta(self) -> State:
        """What changed since the mark, in the form of `delta.diff`."""
        delta: State = {}
        for name, variable in self._variables.items():
            if self._grown and name == "table":
                delta["whole/table"] = self._whole(name)
                continue
            rows = np.flatnonzero(self._touched[name])
            delta[f"rows/{name}"] = rows
            delta[f"values/{name}"] = variable.sparse_read(rows).numpy()
        if self._ids is not None:
            slots = self._ids.changes()
            if slots is None:
                delta["whole/ids"] = self._ids.state()["ids"]
            else:
                delta["rows/ids"], delta["values/ids"] = slots, self._ids.values(slots)
            delta["whole/clock"] = self._ids.state()["clock"]
        return delta

    def plan(self, delta: State) -> dict[str, tuple[NDArray[Any], NDArray[Any]]] | None:
        """Take from `delta` the rows that it writes to each table; None if it brings one whole.

        Raises `IntegrityError` for rows that do not fit.
        """
        if any(f"{kind}/{name}" in delta for kind in ("whole", "gone") for name in self._variables):
            return None
        planned = {}
        for name, variable in self._variables.items():
            if f"rows/{name}" in delta:
                rows, values = delta.pop(f"rows/{name}"), delta.pop(f"values/{name}", None)
                dtype = variable.dtype.as_numpy_dtype
                planned[name] = rows, check_rows(name, self._shape(name), dtype, rows, values)
        return planned

    def map(self) -> State:
        """The map of dynamic ids: the part of the state that is no variable."""
        return {} if self._ids is None else self._ids.state()

    def apply(self, planned: dict[str, tuple[NDArray[Any], NDArray[Any]]], state: State) -> None:
        """Write planned rows and take over the map in `state`; sets the mark."""
        if self._ids is not None:
            self._ids.check(state, self._lengths["table"])
            self._ids.load(state, self._lengths["table"])
        for name, (rows, values) in planned.items():
            self._write(name, rows, values)
        self.mark()

    def _keys(self, ids: Columns) -> tuple[Keys, NDArray[np.bool_]]:
        """Keys and missing marks, (n, embedded fields)."""
        embedded = ids[: self._layout.fields]
        keys = mixed_keys(embedded, self._embedded_salts)
        return np.ascontiguousarray(keys.T), np.stack(embedded, 1) == -1

    def _with_wide(self, rows: NDArray[np.int32], ids: Columns) -> NDArray[np.int32]:
        if "wide" not in self._variables:
            return rows
        fields = self._layout.fields
        return np.concatenate([rows, mix(ids[fields:], self._salts[fields:], self._bits)], 1)

    def _shape(self, name: str) -> tuple[int, int]:
        return self._lengths[name], self._variables[name].shape[1]

    def _grow(self) -> None:
        """Lengthen the table to what the map of ids needs; the graph asks for no length."""
        assert self._ids is not None
        added, table = self._ids.capacity - self._lengths["table"], self._variables["table"]
        if added:
            spare = np.zeros((added, table.shape[1]), np.float32)
            table.assign(np.concatenate([table.numpy(), spare]))
            self._lengths["table"] += added
            self._touched["table"] = np.ones(self._lengths["table"], np.bool_)
            self._grown = True

    def _whole(self, name: str) -> NDArray[np.float32]:
        """A copy of a table."""
        table, start = np.empty(self._shape(name), np.float32), 0
        for part in self.parts(name):
            table[start : start + len(part)] = part.numpy()
            start += len(part)
        return table

    def _have_length(self, name: str, length: int) -> None:
        """Make a table of zeros where the present one has another length."""
        if length != self._lengths[name]:
            self._variables[name].assign(tf.zeros((length, self._shape(name)[1])))
            self._lengths[name] = length

    def _fill(self, name: str, parts: Iterable[Any]) -> None:
        """Write a table from its first row on: arrays or tensors of some rows each."""
        start = 0
        for part in parts:
            self._write(name, np.arange(start, start + len(part)), part)
            start += len(part)

    def _write(self, name: str, rows: NDArray[Any], values: Any) -> None:
        self._variables[name].scatter_update(tf.IndexedSlices(values, rows))
