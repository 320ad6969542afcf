"""The TensorFlow graph: one step of learning, one of prediction, at a fixed batch size.

Every id has one row in one table, `[z, n | weights | accumulators]` as far as the family
needs it, so that a batch costs one `unique`, one read and one write of its distinct rows,
whatever the size of the table. Dense parameters of the network are one flat vector with one Adam.

FTRL-proximal: McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013; the weight
is derived from (z, n) when read. Adagrad: Duchi et al., 2011. Sparse gradients are sums over the
batch, so that a short batch teaches each id as much as a full one.

The rates of FTRL, α/(β + √n), and of Adagrad, lr/√sum, fall by themselves as squared gradients add
up. A learning rate floor ends that sum where the rate is that share of its first value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, reduce
from operator import add
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec
from headrace.model.layout import ADAGRAD_START, Layout, table_shapes
from headrace.model.network import Network
from headrace.model.peers import Peers
from headrace.model.place import Place
from headrace.model.runtime import device, tf

Tensor = Any  # tensorflow has no types that mypy could follow

ADAM_DECAY = (0.9, 0.999)
ADAM_EPSILON = 1e-7
LARGEST_LOGIT = 30.0


def ftrl_weight(spec: ModelSpec, z: Tensor, n: Tensor) -> Tensor:
    """The weights that z and n of FTRL stand for, all of one shape."""
    # without l1 nothing shrinks; with the sign in the divisor no other operation is about it
    shrunk = tf.sign(z) * tf.maximum(tf.abs(z) - spec.ftrl_l1, 0.0) if spec.ftrl_l1 else z
    return shrunk / ((spec.ftrl_beta + tf.sqrt(n)) / -spec.ftrl_alpha - spec.ftrl_l2)


class Graph:
    """Variables of one model and the compiled functions over them."""

    tasks: ClassVar[int] = 1

    def __init__(
        self,
        spec: ModelSpec,
        arrays: dict[str, NDArray[Any]],
        predict_rows: int,
        reweighted: bool = False,
        peers: Peers | None = None,
    ):
        self._spec = spec
        self._peers = peers or Peers()
        self._layout = Layout.of(spec, self.tasks)
        columns = self._layout.columns
        self._networks = [Network.of(spec, columns, task) for task in range(self.tasks)]
        self._network = self._networks[0]
        self._reweights = reweighted
        self.variables = {
            name: self._zeros(name, shape) for name, shape in table_shapes(spec, self.tasks).items()
        } | {name: tf.Variable(a, name=name) for name, a in arrays.items()}
        self._derive = self._compile(self._derived, [])
        derived = [tf.TensorSpec(each.shape, each.dtype) for each in self._derive.outputs]
        self._answer = self._compile(self._predict, [*self._inputs(predict_rows), *derived])
        self._held: list[Tensor] | None = None  # what it takes beside rows; None after a change
        self._place = Place(predict_rows, self._layout.fields + self._layout.wide, columns)
        self._call = {
            "f": self._answer.name,
            "Tout": [tf.float32.as_datatype_enum],
            # inline on a CPU: some dozen small operations cost less than handing them to threads
            "executor_type": "SINGLE_THREADED_EXECUTOR" if device().startswith("CPU") else "",
        }

    def predict(self, ids: NDArray[np.int32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (rows,), or (rows, tasks), of up to `predict_rows` rows, without the offset.

        ids: (rows, fields) of the tables; columns: see `Statistics.design`.
        The compiled function's own call would convert and check what is right by construction,
        in more time than its operations take.
        """
        held = self._held
        if held is None:  # threads may do so at once, and find the same
            held = self._held = [*self._derive(), *self._answer.captured_inputs]
        (logits,) = tf.raw_ops.StatefulPartitionedCall(
            args=[*self._place.put(ids, columns), *held], **self._call
        )
        found: NDArray[np.float32] = logits.numpy()
        return found[: len(ids)] if self.tasks > 1 else found[: len(ids), 0]

    def learn(
        self,
        ids: NDArray[np.int32],
        columns: NDArray[np.float32],
        weights: NDArray[np.float32],
        scalars: NDArray[np.float32],
    ) -> Tensor:
        """One step over `batch_size` rows, see `_learn`; predictions must not run meanwhile."""
        self._held = None
        return self._step(ids, columns, weights, scalars)

    def assign(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over the variables that are no tables; predictions must not run meanwhile."""
        self._held = None
        for name in self.small:
            self.variables[name].assign(arrays[name].copy())

    @property
    def small(self) -> list[str]:
        """Names of the variables that are no tables."""
        return [name for name in self.variables if name not in ("table", "wide")]

    @cached_property
    def _step(self) -> Any:
        """The compiled step. Traced at its first use: who only predicts does not pay for it."""
        size = self._spec.batch_size
        of_step = [
            tf.TensorSpec([size, 2 * self.tasks], tf.float32),
            tf.TensorSpec([3 + self.tasks], tf.float32),
        ]
        step = self._peers.compile(self._learn)
        return self._compile(step, [*self._inputs(size), *of_step])

    def _inputs(self, rows: int) -> list[Any]:
        return [
            tf.TensorSpec([rows, self._layout.fields + self._layout.wide], tf.int32),
            tf.TensorSpec([rows, self._layout.columns], tf.float32),
        ]

    def _zeros(self, name: str, shape: tuple[int, int]) -> Any:
        """A table; who makes the graph fills it."""
        open_ = None
        if name == "table" and self._spec.ids == "dynamic":
            open_ = tf.TensorShape([None, shape[1]])  # it grows without retracing
        return tf.Variable(tf.zeros(shape), name=name, shape=open_)

    @staticmethod
    def _compile(function: Callable[..., Tensor], signature: list[Any]) -> Any:
        compiled = tf.function(function, input_signature=signature, autograph=False)
        return compiled.get_concrete_function()

    def _derived(self) -> list[Tensor]:
        """What a prediction needs of the small variables, whatever its rows.

        FTRL weights (columns, tasks) of the columns; then each network's parameters, by
        `Network.cut`. Worked out at the first prediction after a change, so that who learns step
        after step does not pay for it.
        """
        derived = []
        if self._layout.linear:
            derived.append(self._id_weights(self.variables["linear"].read_value()))
        if self._layout.deep:
            sizes = [network.size for network in self._networks]
            flat = tf.split(self.variables["dense"].read_value(), sizes)
            for network, part in zip(self._networks, flat, strict=True):
                derived += network.cut(network.split(part))
        return derived

    def _predict(self, ids: Tensor, columns: Tensor, *derived: Tensor) -> Tensor:
        """Logits (rows, tasks); derived: see `_derived`."""
        layout, rest = self._layout, list(derived)
        wide = None
        if layout.wide:
            ids, wide = tf.split(ids, [layout.fields, layout.wide], axis=1)
        rows = self.variables["table"].sparse_read(ids)
        terms = []
        if layout.linear:
            terms.append(tf.reduce_sum(self._id_weights(rows), 1))
            terms.append(tf.matmul(columns, rest.pop(0)))
        if wide is not None:
            wide_rows = self.variables["wide"].sparse_read(wide)
            terms.append(tf.reduce_sum(self._id_weights(wide_rows), 1))
        if layout.deep:
            embedding = self._side_by_side(rows[:, :, layout.weights], columns)
            count = len(rest) // self.tasks
            towers = [
                network.column(rest[count * task : count * (task + 1)], embedding, columns)
                for task, network in enumerate(self._networks)
            ]
            terms.append(tf.concat(towers, 1) if self.tasks > 1 else towers[0])
        return reduce(add, terms)

    def _id_weights(self, rows: Tensor) -> Tensor:
        """FTRL weights (..., tasks) of rows (..., width) that begin with z and n of each task."""
        last = 2 * self.tasks
        return ftrl_weight(self._spec, rows[..., 0:last:2], rows[..., 1:last:2])

    def _learn(self, ids: Tensor, columns: Tensor, weights: Tensor, scalars: Tensor) -> Tensor:
        """One step; returns the sum of the batch's losses before it.

        weights: (rows, 2) positive and negative; scalars: the logit's offset, Adam's betas to
        the power of the step, and the share of positives that were negatives first.
        """
        layout, table = self._layout, self.variables["table"]
        positive, negative = weights[:, 0], weights[:, 1]
        ids, wide = tf.split(ids, [layout.fields, layout.wide], axis=1)
        unique, position = tf.unique(tf.reshape(ids, [-1]))
        held = table.sparse_read(unique)
        logit = scalars[0] + tf.zeros_like(positive)
        if layout.linear:
            by_id = tf.gather(self._ftrl_weight(held), position)
            logit += self._linear_logit(by_id, columns)
        if layout.wide:
            of_wide = tf.unique(tf.reshape(wide, [-1]))
            held_wide = self.variables["wide"].sparse_read(of_wide.y)
            logit += self._by_row(tf.gather(self._ftrl_weight(held_wide), of_wide.idx), columns)
        peers = self._peers if layout.deep else Peers()  # only a network is worth sharing
        part = peers.share(self._spec.batch_size)
        logit, positive, negative = logit[part], positive[part], negative[part]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if layout.deep:
                parameters = self._network.split(self.variables["dense"].read_value())
                of_part = tf.reshape(position, [self._spec.batch_size, layout.fields])[part]
                rows = tf.gather(held[:, layout.weights], tf.reshape(of_part, [-1]))
                embedding = self._side_by_side(rows, columns[part])
                tape.watch([embedding, *parameters])
                deep = self._network.logit(parameters, embedding, columns[part])
                logit += deep
        if self._reweights:
            positive, negative = self._reweighted(positive, negative, logit, scalars[3])
        # d/dlogit of -pw·log σ - nw·log(1-σ); for a correction (1, -1) it is exactly -1
        slope = (positive + negative) * tf.sigmoid(logit) - positive
        loss = positive * tf.nn.softplus(-logit) + negative * tf.nn.softplus(logit)
        by_row, flat = [slope, loss], tf.zeros([0])
        if layout.deep:
            of_embedding, *of_dense = tape.gradient(
                deep, [embedding, *parameters], output_gradients=slope
            )
            by_row.append(of_embedding)
            flat = tf.concat([tf.reshape(part, [-1]) for part in of_dense], 0)
        (slope, loss, *by_row), flat = peers.exchange(by_row, flat, self._spec.batch_size)
        stepped = []
        if layout.linear:
            self._step_linear(tf.linalg.matvec(columns, slope, transpose_a=True))
            by_id = self._summed(tf.repeat(slope, layout.fields), position, unique)
            stepped.append(self._ftrl(held, by_id))
        if layout.wide:
            by_id = self._summed(tf.repeat(slope, layout.wide), of_wide.idx, of_wide.y)
            rows = tf.IndexedSlices(self._ftrl(held_wide, by_id), of_wide.y)
            self.variables["wide"].scatter_update(rows)
        if layout.deep:
            self._step_dense(flat / self._spec.batch_size, scalars[1:3])
            by_id = tf.reshape(by_row[0], [-1, layout.dim])
            stepped.append(self._adagrad(held, self._summed(by_id, position, unique)))
        table.scatter_update(tf.IndexedSlices(tf.concat(stepped, 1), unique))
        return tf.reduce_sum(loss)

    @staticmethod
    def _summed(gradient: Tensor, position: Tensor, unique: Tensor) -> Tensor:
        return tf.math.unsorted_segment_sum(gradient, position, tf.size(unique))

    @staticmethod
    def _reweighted(
        positive: Tensor, negative: Tensor, logit: Tensor, late_share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Importance weights of a stream in which late positives were negatives first.

        The slope below treats them as constants: no gradient flows through the prediction here.
        """
        late = late_share * tf.sigmoid(logit)
        # (1-p) / (1-p + share·p), also where 1-p is no longer a float
        real = 1.0 / (1.0 + late_share * tf.exp(tf.minimum(logit, LARGEST_LOGIT)))
        return positive * (1.0 + late), tf.maximum(negative, 0.0) * (1.0 + late) * real

    def _adagrad(self, held: Tensor, slope: Tensor) -> Tensor:
        sums = held[:, self._layout.weights.stop :] + slope * slope
        if floor := self._spec.learning_rate_floor:
            sums = tf.minimum(sums, ADAGRAD_START / floor**2)
        step = self._spec.embedding_learning_rate * slope * tf.math.rsqrt(sums)
        return tf.concat([held[:, self._layout.weights] - step, sums], 1)

    def _step_linear(self, gradient: Tensor) -> None:
        linear = self.variables["linear"]
        linear.assign(self._ftrl(linear.read_value(), gradient))

    def _step_dense(self, gradient: Tensor, powers: Tensor) -> None:
        names = {"var": "dense", "m": "dense_m", "v": "dense_v"}
        tf.raw_ops.ResourceApplyAdam(
            **{slot: self.variables[name].handle for slot, name in names.items()},
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=self._spec.dense_learning_rate,
            beta1=ADAM_DECAY[0],
            beta2=ADAM_DECAY[1],
            epsilon=ADAM_EPSILON,
            grad=gradient,
        )

    def _ftrl_weight(self, rows: Tensor) -> Tensor:
        return ftrl_weight(self._spec, rows[:, 0], rows[:, 1])

    def _ftrl(self, rows: Tensor, gradient: Tensor) -> Tensor:
        z, n = rows[:, 0], rows[:, 1]
        grown = n + gradient * gradient
        if floor := self._spec.learning_rate_floor:
            grown = tf.minimum(grown, (self._spec.ftrl_beta * (1 / floor - 1)) ** 2)
        sigma = (tf.sqrt(grown) - tf.sqrt(n)) / self._spec.ftrl_alpha
        return tf.stack([z + gradient - sigma * self._ftrl_weight(rows), grown], 1)

    def _linear_logit(self, by_id: Tensor, columns: Tensor) -> Tensor:
        dense = self._ftrl_weight(self.variables["linear"].read_value())
        return self._by_row(by_id, columns) + tf.linalg.matvec(columns, dense)

    @staticmethod
    def _by_row(by_id: Tensor, columns: Tensor) -> Tensor:
        rows = columns.shape[0]
        # the number of fields is said, not -1: there may be none
        return tf.reduce_sum(tf.reshape(by_id, [rows, by_id.shape[0] // rows]), 1)

    def _side_by_side(self, embedding: Tensor, columns: Tensor) -> Tensor:
        return tf.reshape(embedding, [columns.shape[0], self._layout.fields * self._layout.dim])
