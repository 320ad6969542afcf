"""`Model`: predict, learn, and a state that is all of it.

A row's logit is the log odds of the positives seen so far, plus (`ftrl`, `ftrl_deep`) one FTRL
weight for each id, a bias and dense FTRL weights for the standardised numbers and their missing
indicators, plus (`deep`, `ftrl_deep`, `dcn`) a network over the ids' embeddings and the same
numbers.
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

With `conversion` the model has a second task (see tasks): a conversion given a click, whose rows
bring `conversion_positive_weight` and `conversion_negative_weight` of click-and-conversion.

State arrays: `table`, `wide` and, of dynamic ids, `ids` and `clock` (see tables, ids); `linear`,
`dense`, `dense_m`, `dense_v` (see step), `step` (int64, Adam's
count), `moments` and `classes` (see inputs.Statistics), `identity` (a digest of the declared
shape and seed, so that a state of another model is refused); with `esdfm` also `late` (float64,
late positives and all positives learned; a state without it has learned none).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import DelayedFeedback, ModelSpec
from headrace.errors import DeclarationError, IntegrityError
from headrace.events import weight_columns
from headrace.model.batches import PREDICT_ROWS, batches, padded
from headrace.model.delta import State, apply
from headrace.model.identity import identity_of
from headrace.model.inputs import (
    Inputs,
    Statistics,
    read_ids,
    read_numbers,
    read_times,
    read_weights,
    refuse_infinite,
    rows_of,
    side_by_side,
)
from headrace.model.layout import initial_arrays
from headrace.model.peers import Peers
from headrace.model.runtime import allow_tensorfloat32
from headrace.model.step import ADAM_DECAY, Graph
from headrace.model.tables import Columns, Tables
from headrace.model.tasks import TwoTasks

LOGIT_LIMIT = 30.0  # keeps probabilities inside (0, 1) in float64


@dataclass(frozen=True)
class LearnReport:
    """What a call of `learn` did: rows read, and their mean loss, each before its own step."""

    rows: int
    loss: float


class Model:
    """A click model of one of the families `ftrl`, `deep`, `ftrl_deep`, `dcn`.

    Everything that training changes is in `state()`; `seed` fixes the fresh weights and how ids
    are mixed. `load_state` into a model of the same spec and seed continues bit for bit.
    Not thread-safe: learn and load in one thread; predictions may run beside each other.
    With `peers` every process of the group must learn the same samples (see peers).
    With `blank` no fresh rows are drawn, in the time that a large table takes: load a state first.
    """

    def __init__(
        self,
        spec: ModelSpec,
        seed: int,
        feedback: DelayedFeedback = "correct",
        peers: Peers | None = None,
        conversion: bool = False,
        *,
        blank: bool = False,
    ):
        if conversion and feedback in ("fnw", "esdfm"):
            raise DeclarationError(f"model: {feedback} weighs one task; use correct or naive")
        self.spec = spec
        self.seed = seed
        self.feedback = feedback
        self.conversion = conversion
        self._identity = identity_of(spec, seed, conversion)
        if spec.precision == "tensorfloat32":
            allow_tensorfloat32()
        kind = TwoTasks if conversion else Graph
        self._graph = kind(
            spec,
            initial_arrays(spec, seed, kind.tasks),
            PREDICT_ROWS,
            reweighted=feedback in ("fnw", "esdfm"),
            peers=peers,
        )
        self._tables = Tables(spec, seed, self._graph.variables, kind.tasks, blank)
        self._late = np.zeros(2)
        self._statistics = Statistics.empty(len(spec.numeric), kind.tasks)
        self._step = 0
        self.mark()

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        """Probabilities (n,) float64 of a click, of rows with the model's fields: ids int64,
        numbers float64.

        A row's probability does not depend on the other rows. Raises `InputError` naming a
        field that is absent, of another type, or infinite.
        """
        logits = self._logits(inputs)
        return _probabilities(logits[:, 0] if self.conversion else logits)

    def predict_tasks(self, inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """The same, by task: `click`, and with conversions `conversion` (given a click) and their
        product `click_and_conversion`.
        """
        logits = self._logits(inputs)
        if not self.conversion:
            return {"click": _probabilities(logits)}
        click, conversion = _probabilities(logits).T.copy()
        both: NDArray[np.float64] = click * conversion
        return {"click": click, "conversion": conversion, "click_and_conversion": both}

    def _logits(self, inputs: Inputs) -> NDArray[np.float64]:
        """Logits (n,), or (n, 2) of click and conversion."""
        ids, numbers = self._read(inputs)
        offsets = self._statistics.offsets()
        size = rows_of(inputs)
        logits = np.empty((size, 2) if self.conversion else size, np.float64)
        for part in batches(size, PREDICT_ROWS):
            dense = side_by_side(numbers, part, self.spec.numeric)
            columns = self._statistics.design(dense)
            found = self._graph.predict(self._tables.rows(ids, part), columns)
            # added here, last and in float32, as `headrace export` adds it in its graph
            np.add(found, offsets, out=logits[part])
        return logits

    def learn(self, samples: pa.Table) -> LearnReport:
        """Learn rows in order, once, in batches of `spec.batch_size`; the last one is padded.

        Needs the model's fields and `positive_weight`, `negative_weight`; the loss of a row is
        above, with conversions the sum of both tasks. No rows: nothing changes. Everything is
        checked before anything is learned: raises `InputError` as `predict` does, and for a
        weight that is not finite.
        `spec.epochs` is the caller's loop.
        """
        ids, numbers = self._read(samples)
        refuse_infinite(numbers, self.spec.numeric)
        names = weight_columns(self.conversion)
        weights = np.stack([read_weights(samples, name) for name in names], 1)
        if self.feedback == "naive":
            weights[:, 1::2] = np.maximum(weights[:, 1::2], 0)
        times = np.zeros(samples.num_rows, np.int64)
        if self.spec.expire_after is not None:
            times = read_times(samples, "event_at")
        size = self.spec.batch_size
        loss = 0.0
        for part in batches(samples.num_rows, size):
            dense = np.ascontiguousarray(side_by_side(numbers, part, self.spec.numeric))
            self._statistics.see(dense, weights[part])
            columns = self._statistics.design(dense)
            looks = weights[part, :2].sum(axis=1) > 0  # neither padding nor a correction
            newest = int(times[part][looks].max(initial=0))
            rows = self._tables.rows_to_learn(ids, part, looks, newest)
            self._step += 1
            loss += float(
                self._graph.learn(
                    padded(rows, size),
                    padded(columns, size),
                    padded(weights[part], size, empty=True),
                    self._scalars(weights[part]),
                )
            )
        rows_read = samples.num_rows
        return LearnReport(rows_read, loss / rows_read if rows_read else 0.0)

    def _scalars(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a step needs beside the rows: offset, Adam's powers, share of late positives."""
        powers = np.power(ADAM_DECAY, self._step)
        offset, *after = self._statistics.offsets()
        scalars = [offset, *powers, self._late_share(weights), *after]
        return np.array(scalars, np.float32)

    def _late_share(self, weights: NDArray[np.float32]) -> float:
        """Late positives among all learned so far, with these; 1 and 0 where none are counted."""
        if self.feedback != "esdfm":
            return float(self.feedback == "fnw")
        late = np.maximum(-weights[:, 1], 0).sum(dtype=np.float64)
        self._late = self._late + np.array([late, weights[:, 0].sum(dtype=np.float64)])
        return float(min(self._late[0] / max(self._late[1], 1.0), 1.0))

    def state(self) -> State:
        """A copy of everything that training changes, and the model's identity."""
        return {**self._tables.state(), **self._small()}

    def load_state(self, state: State) -> None:
        """Take over a state of `state()`, whole or not at all; sets the mark of `delta`.

        Raises `DeclarationError` for the state of another model (fields, family, shape or seed),
        `IntegrityError` for one that lacks arrays or has them in another shape.
        """
        self._check_identity(state)
        self._tables.check(state)
        _check_shapes(self._small(), {"late": np.zeros(2), **state})
        self._tables.load(state)
        self._take_over(state)

    def load_beside(self, other: Model, rest: State) -> None:
        """Take over the tables of another model as they are now, and what `rest` holds beside them.

        Raises as `load_state` does. The other must not learn meanwhile; it may predict.
        """
        self._check_identity({"identity": other._identity, **rest})
        _check_shapes(self._small(), {"late": np.zeros(2), **rest})
        self._tables.load_beside(other._tables, rest)
        self._take_over(rest)

    def _check_identity(self, state: State) -> None:
        identity = state.get("identity")
        if identity is not None and not np.array_equal(identity, self._identity):
            raise DeclarationError(
                f"model: the state belongs to another declaration or seed than family "
                f"{self.spec.family!r}, seed {self.seed}; restore the declaration or run a full "
                "retrain"
            )

    def mark(self) -> None:
        """Let `delta` count from here; a fresh model and `load_state` do so by themselves."""
        self._tables.mark()
        self._marked_step = self._step

    def delta(self) -> State:
        """What changed since the mark, in the form of `delta.diff`; empty when nothing was learned.

        It costs what the touched rows cost, not what the table costs. A row that was learned
        with weight 0 counts as touched though its bits are the same.
        """
        if self._step == self._marked_step:
            return {}
        small = {f"whole/{name}": array for name, array in self._small().items()}
        del small["whole/identity"]
        return {**self._tables.delta(), **small}

    def apply(self, delta: State) -> None:
        """Go on to the state after `delta` in place, whole or not at all; sets the mark.

        `delta` is one of `delta` or `delta.diff`, made from the model's present state. Raises
        `IntegrityError` when it does not fit. Predictions must not run meanwhile.
        """
        rest = dict(delta)
        planned = self._tables.plan(rest)
        if planned is None:  # a table comes whole
            self.load_state(apply(self.state(), delta))
            return
        small = self._small()
        own = {**self._tables.map(), **small}
        state = apply(own, rest)
        if unknown := set(state) - set(own) - {"late"}:
            raise IntegrityError(f"the delta has arrays {sorted(unknown)} that no model has")
        _check_shapes(small, state)
        self._tables.apply(planned, state)
        self._take_over(state)

    @property
    def tables(self) -> tuple[str, ...]:
        """Arrays of the state whose rows `rows` reads; too large to copy for a few of them."""
        return self._tables.names

    def length(self, name: str) -> int:
        """How many rows a table has."""
        return self._tables.length(name)

    def rows(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a table as they are now. Raises `IntegrityError` for one that it lacks."""
        return self._tables.read(name, numbers)

    def is_finite(self) -> bool:
        """Whether every number of the state is finite."""
        return all(bool(np.isfinite(array).all()) for array in self.state().values())

    def _small(self) -> State:
        """A copy of the state without its tables."""
        variables = self._graph.variables
        arrays: State = {name: np.array(variables[name].numpy()) for name in self._graph.small}
        arrays["step"] = np.array([self._step], np.int64)
        arrays["moments"] = self._statistics.moments.copy()
        arrays["classes"] = self._statistics.classes.copy()
        arrays["identity"] = self._identity.copy()
        if self.feedback == "esdfm":
            arrays["late"] = self._late.copy()
        return arrays

    def _take_over(self, state: State) -> None:
        self._graph.assign(state)
        self._step = int(state["step"][0])
        self._statistics = Statistics(state["moments"].copy(), state["classes"].copy())
        # a full training counts no late positives
        self._late = state.get("late", np.zeros(2)).copy()
        self.mark()

    def _read(self, table: Inputs) -> tuple[Columns, Columns]:
        return read_ids(table, self._tables.fields), read_numbers(table, self.spec.numeric)


def _probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.minimum(np.maximum(logits, -LOGIT_LIMIT), LOGIT_LIMIT)
    probabilities: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-clipped))
    return probabilities


def _check_shapes(wanted: State, state: State) -> None:
    """Raise `IntegrityError` unless the state has those arrays in their shapes and dtypes."""
    for name, own in wanted.items():
        array = state.get(name)
        if array is None or array.shape != own.shape or array.dtype != own.dtype:
            found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise IntegrityError(
                f"state array {name!r}: expected {own.dtype}{list(own.shape)}, found {found}; "
                "load another version or run a full retrain"
            )
