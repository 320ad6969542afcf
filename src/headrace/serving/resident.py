"""One model in memory: at which version it stands, and what takes it to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import input_fields
from headrace.line import Version
from headrace.line.fingerprint import carried, read_through
from headrace.line.states import to_hex
from headrace.model import Model, State, delta


class Resident:
    """A model and the version whose state it holds, None while it holds none whole.

    Not thread-safe: who changes it makes sure that nobody predicts with it meanwhile.
    """

    def __init__(self, spec: LineSpec) -> None:
        self._blank = blank_inputs(spec)
        self.model = Model(spec.model, spec.seed, conversion=spec.converts, blank=True)
        self.version: Version | None = None
        self.users = 0  # requests that predict with the model at this moment
        self.usable = False  # whether a request may: not while it is being changed
        self._small: State = {}  # what was published beside the tables

    def load(self, version: Version, state: State) -> None:
        """Take over a whole state as the store has checked it."""
        self.version = None
        self.model.load_state(state)
        self._small = {n: array for n, array in state.items() if n not in self.model.tables}
        self.version = version

    def load_beside(self, other: Resident) -> None:
        """Take over what another holds, which may predict but must not change meanwhile.

        Raises `IntegrityError` where that is not the state that was published.
        """
        version = other.version
        assert version is not None
        self.version = None
        self.model.load_beside(other.model, other._small)
        self._small = other._small
        lengths = {name: self.model.length(name) for name in self.model.tables}
        if to_hex(read_through(lengths, self.held, self._small)) != version.fingerprint:
            raise IntegrityError(
                f"{version.version}: the model in memory is no longer what was published; "
                "load a base"
            )
        self.version = version

    def advance(self, version: Version, changes: State) -> None:
        """Apply the delta of the next version, in time of the rows that it touches.

        Whether it leads to the state that was published is known before anything is applied.
        Raises `IntegrityError`, the model untouched, when it does not or is out of order.
        """
        held = self.version
        if held is None or version.parent != held.version:
            found = "no version" if held is None else held.version
            raise IntegrityError(
                f"{version.version} follows {version.parent}, but the model stands at {found}; "
                "load a base"
            )
        if to_hex(self.carried(changes)) != version.fingerprint:
            raise IntegrityError(
                f"{version.version}: its delta does not lead to the state that was published; "
                "load a base"
            )
        self.version = None
        self.model.apply(changes)
        tables = self.model.tables
        beside = {key: a for key, a in changes.items() if key.partition("/")[2] not in tables}
        self._small = delta.apply(self._small, beside)
        self.version = version

    def try_out(self) -> None:
        """Score a blank request: that traces the graph, and touches the model's memory.

        Raises `IntegrityError` where the scores are not finite; no request may use it then.
        """
        assert self.version is not None
        scores = self.model.predict_tasks(self._blank)
        if not all(np.isfinite(values).all() for values in scores.values()):
            self.usable = False
            raise IntegrityError(
                f"{self.version.version} gives scores that are not finite; roll it back"
            )

    def carried(self, changes: State) -> int:
        """The fingerprint of the state that `changes` lead to, in time of the rows they touch."""
        assert self.version is not None
        return carried(int(self.version.fingerprint, 16), self.held, changes)

    def state(self) -> State:
        """A copy of the whole state, as it was published."""
        whole = self.model.state()
        return {name: whole[name] for name in self.model.tables} | self._small

    def held(self, name: str, rows: NDArray[np.int64] | None) -> NDArray[Any] | None:
        """Rows of an array as they are now, or all of it; see `line.fingerprint.Held`."""
        if name not in self.model.tables:
            array = self._small.get(name)
            return array if array is None or rows is None else array[rows]
        return self.model.state()[name] if rows is None else self.model.rows(name, rows)


def blank_inputs(spec: LineSpec) -> pa.Table:
    """Model inputs of one row, all zeros."""
    schema = pa.schema(input_fields(spec))
    return pa.table([pa.array([0]).cast(field.type) for field in schema], schema=schema)
