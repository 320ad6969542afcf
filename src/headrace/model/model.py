"""`Model`: predict, learn, and a state that is all of it.

A row's logit is the log odds of the positives seen so far, plus (`ftrl`, `ftrl_deep`) one FTRL
weight for each id, a bias and dense FTRL weights for the standardised numbers and their missing
indicators, plus (`deep`, `ftrl_deep`) a network over the ids' embeddings and the same numbers.
A batch first enters the running statistics, then is learned with them.

How a row's weights enter the loss is the `feedback` that the model was made for. `correct`: as
they are, loss = -positive_weight·log p - negative_weight·log(1-p), so that a correction (1, -1)
takes the earlier negative back. The others keep that negative, with m = max(negative_weight, 0):
- `naive`: -positive_weight·log p - m·log(1-p);
- `esdfm` (Yang et al. 2021): -positive_weight·(1+d)·log p - m·(1+d)·r·log(1-p), where
  d = share·p is the probability of an engagement that comes after the negative was emitted and
  r = (1-p)/(1-p+d) that of a real negative among the emitted; p is the model's own, held
  constant, and `share` that of late positives among all positives learned so far;
- `fnw` (Ktena et al. 2019): the same with share = 1, since there every positive was a negative
  first: weights 1+p and (1-p)(1+p).

State arrays: `table`, `linear`, `dense`, `dense_m`, `dense_v` (see step), `step` (int64, Adam's
count), `moments` and `classes` (see inputs.Statistics), `identity` (a digest of the declared
shape and seed, so that a state of another model is refused); with `esdfm` also `late` (float64,
late positives and all positives learned; a state without it has learned none).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import DelayedFeedback, ModelSpec
from headrace.errors import DeclarationError, IntegrityError
from headrace.model.delta import State, apply
from headrace.model.inputs import (
    Statistics,
    field_salt,
    mix,
    read_ids,
    read_numbers,
    read_weights,
)
from headrace.model.runtime import tf
from headrace.model.step import ADAM_DECAY, Graph, Layout, initial_arrays

PREDICT_ROWS = 256  # one shape for every request and batch job, so that a row always scores alike
LOGIT_LIMIT = 30.0  # keeps probabilities inside (0, 1) in float64


@dataclass(frozen=True)
class LearnReport:
    """What a call of `learn` did: rows read, and their mean loss, each before its own step."""

    rows: int
    loss: float


class Model:
    """A click model of one of the families `ftrl`, `deep`, `ftrl_deep`.

    Everything that training changes is in `state()`; `seed` fixes the fresh weights and how ids
    are mixed. `load_state` into a model of the same spec and seed continues bit for bit.
    Not thread-safe: learn and load in one thread; predictions may run beside each other.
    """

    def __init__(self, spec: ModelSpec, seed: int, feedback: DelayedFeedback = "correct"):
        self.spec = spec
        self.seed = seed
        self.feedback = feedback
        self._salts = np.array([field_salt(seed, f) for f in spec.categorical], np.uint64)
        self._identity = _identity(spec, seed)
        self._graph = Graph(
            spec,
            initial_arrays(Layout.of(spec), spec.table_bits, seed),
            PREDICT_ROWS,
            reweighted=feedback in ("fnw", "esdfm"),
        )
        self._late = np.zeros(2)
        self._statistics = Statistics.empty(len(spec.numeric))
        self._step = 0

    def predict(self, inputs: pa.Table) -> NDArray[np.float64]:
        """Probabilities (n,) float64 of rows with the model's fields: ids int64, numbers float64.

        A row's probability does not depend on the other rows. Raises `InputError` naming a
        field that is absent, of another type, or infinite.
        """
        ids, numbers = self._read(inputs)
        columns = self._statistics.design(numbers)
        offset = self._statistics.offset()
        logits = np.empty(len(ids), np.float64)
        for start, stop in _batches(len(ids), PREDICT_ROWS):
            batch = (_padded(a[start:stop], PREDICT_ROWS) for a in (ids, columns))
            logits[start:stop] = self._graph.predict(*batch, offset).numpy()[: stop - start]
        return 1.0 / (1.0 + np.exp(-np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)))

    def learn(self, samples: pa.Table) -> LearnReport:
        """Learn rows in order, once, in batches of `spec.batch_size`; the last one is padded.

        Needs the model's fields and `positive_weight`, `negative_weight`; the loss of a row is
        above. No rows: nothing changes. Everything is checked before anything is learned:
        raises `InputError` as `predict` does, and for a weight that is not finite.
        `spec.epochs` is the caller's loop.
        """
        ids, numbers = self._read(samples)
        weights = np.stack(
            [read_weights(samples, "positive_weight"), read_weights(samples, "negative_weight")], 1
        )
        if self.feedback == "naive":
            weights[:, 1] = np.maximum(weights[:, 1], 0)
        size = self.spec.batch_size
        loss = 0.0
        for start, stop in _batches(len(ids), size):
            part = slice(start, stop)
            self._statistics.see(numbers[part], weights[part])
            columns = self._statistics.design(numbers[part])
            self._step += 1
            powers = np.power(ADAM_DECAY, self._step).astype(np.float32)
            loss += float(
                self._graph.learn(
                    _padded(ids[part], size),
                    _padded(columns, size),
                    self._statistics.offset(),
                    _padded(weights[part], size, empty=True),
                    powers,
                    *self._late_share(weights[part]),
                )
            )
        return LearnReport(len(ids), loss / len(ids) if len(ids) else 0.0)

    def _late_share(self, weights: NDArray[np.float32]) -> list[np.float32]:
        """What a reweighted step needs beside the rows: the share of late positives, or nothing."""
        if self.feedback == "fnw":
            return [np.float32(1.0)]
        if self.feedback != "esdfm":
            return []
        late = np.maximum(-weights[:, 1], 0).sum(dtype=np.float64)
        self._late = self._late + np.array([late, weights[:, 0].sum(dtype=np.float64)])
        return [np.float32(min(self._late[0] / max(self._late[1], 1.0), 1.0))]

    def state(self) -> State:
        """A copy of everything that training changes, and the model's identity."""
        return {"table": np.array(self._graph.variables["table"].numpy()), **self._small()}

    def _small(self) -> State:
        """A copy of the state without its table."""
        variables = self._graph.variables
        arrays: State = {n: np.array(v.numpy()) for n, v in variables.items() if n != "table"}
        arrays["step"] = np.array([self._step], np.int64)
        arrays["moments"] = self._statistics.moments.copy()
        arrays["classes"] = self._statistics.classes.copy()
        arrays["identity"] = self._identity.copy()
        if self.feedback == "esdfm":
            arrays["late"] = self._late.copy()
        return arrays

    def load_state(self, state: State) -> None:
        """Take over a state of `state()`, whole or not at all.

        Raises `DeclarationError` for the state of another model (fields, family, shape or seed),
        `IntegrityError` for one that lacks arrays or has them in another shape.
        """
        identity = state.get("identity")
        if identity is not None and not np.array_equal(identity, self._identity):
            raise DeclarationError(
                f"model: the state belongs to another declaration or seed than family "
                f"{self.spec.family!r}, seed {self.seed}; restore the declaration or run a full "
                "retrain"
            )
        if self.feedback == "esdfm":  # a full training counts no late positives
            state = {"late": np.zeros(2), **state}
        self._check_shapes(state)
        for name, variable in self._graph.variables.items():
            variable.assign(state[name].copy())  # a copy: TensorFlow may keep the buffer
        self._step = int(state["step"][0])
        self._statistics = Statistics(state["moments"].copy(), state["classes"].copy())
        if self.feedback == "esdfm":
            self._late = state["late"].copy()

    @property
    def tables(self) -> tuple[str, ...]:
        """Arrays of the state whose rows `rows` reads; too large to copy for a few of them."""
        return ("table",)

    def rows(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a table as they are now. Raises `IntegrityError` for one that it lacks."""
        table = self._graph.variables[name]
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < table.shape[0]:
            raise IntegrityError(f"{name!r} has rows 0 to {table.shape[0] - 1}; load a base")
        rows: NDArray[np.float32] = table.sparse_read(numbers).numpy()
        return rows

    def apply(self, delta: State) -> None:
        """Go on to the state after `delta` in place, whole or not at all.

        Raises `IntegrityError` when it does not fit. Predictions must not run meanwhile.
        """
        rows, values = delta.get("rows/table"), delta.get("values/table")
        if rows is None or values is None:
            self.load_state(apply(self.state(), delta))
            return
        beside = {k: v for k, v in delta.items() if not k.endswith("s/table")}
        small = apply(self._small(), beside)
        table = self._graph.variables["table"]
        table.scatter_update(tf.IndexedSlices(values, rows))
        for name, variable in self._graph.variables.items():
            if name != "table":
                variable.assign(small[name].copy())
        self._step = int(small["step"][0])
        self._statistics = Statistics(small["moments"].copy(), small["classes"].copy())

    def is_finite(self) -> bool:
        """Whether every number of the state is finite."""
        return all(bool(np.isfinite(array).all()) for array in self.state().values())

    def _read(self, table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        ids = read_ids(table, self.spec.categorical)
        return mix(ids, self._salts, self.spec.table_bits), read_numbers(table, self.spec.numeric)

    def _check_shapes(self, state: State) -> None:
        for name, own in self.state().items():
            array = state.get(name)
            if array is None or array.shape != own.shape or array.dtype != own.dtype:
                found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise IntegrityError(
                    f"state array {name!r}: expected {own.dtype}{list(own.shape)}, found {found}; "
                    "load another version or run a full retrain"
                )


def _identity(spec: ModelSpec, seed: int) -> NDArray[np.uint8]:
    network = (spec.embedding_dim, spec.hidden) if spec.family != "ftrl" else ()
    shape = (spec.family, spec.categorical, spec.numeric, spec.table_bits, network, seed)
    digest = hashlib.sha256(repr(shape).encode()).digest()
    return np.frombuffer(digest, np.uint8)


def _batches(rows: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _padded(array: NDArray[Any], rows: int, empty: bool = False) -> NDArray[Any]:
    """Fill up to `rows`: with 0 (a weight of nothing), else with copies of the last row.

    A copy touches no row of the table that the batch does not touch anyway.
    """
    lacking = rows - len(array)
    if lacking == 0:
        return array
    filler = np.zeros_like(array[-1:]) if empty else array[-1:]
    return np.concatenate([array, np.repeat(filler, lacking, axis=0)])
