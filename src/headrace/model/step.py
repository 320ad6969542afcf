"""The TensorFlow graph: one step of learning, one of prediction, at a fixed batch size.

Every id has one row in one table, `[z, n | weights | accumulators]` as far as the family
needs it, so that a batch costs one `unique`, one gather, one segment sum and one scatter
whatever the size of the table. Dense parameters of the network are one flat vector with one Adam.

FTRL-proximal: McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013; the weight
is derived from (z, n) when read. Adagrad: Duchi et al., 2011. Sparse gradients are sums over the
batch, so that a short batch teaches each id as much as a full one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec
from headrace.model.runtime import tf

Tensor = Any  # tensorflow has no types that mypy could follow

ADAM_DECAY = (0.9, 0.999)
ADAM_EPSILON = 1e-7
ADAGRAD_START = 0.1
EMBEDDING_DEVIATION = 0.01
LARGEST_LOGIT = 30.0


@dataclass(frozen=True)
class Layout:
    """Widths and shapes that follow from a declaration."""

    linear: bool
    deep: bool
    fields: int
    columns: int
    dim: int
    layers: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> Layout:
        """Layout of a declared model; `columns` counts the dense inputs (see Statistics.design)."""
        columns = 1 + 2 * len(spec.numeric)
        deep = spec.family != "ftrl"
        widths = (len(spec.categorical) * spec.embedding_dim + columns, *spec.hidden, 1)
        return cls(
            linear=spec.family != "deep",
            deep=deep,
            fields=len(spec.categorical),
            columns=columns,
            dim=spec.embedding_dim if deep else 0,
            layers=tuple(pairwise(widths)) if deep else (),
        )

    @property
    def row_width(self) -> int:
        """float32 numbers in one row of the table."""
        return 2 * self.linear + 2 * self.dim

    @property
    def dense_size(self) -> int:
        """Length of the flat vector of the network's weights and biases."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in self.layers)


def initial_arrays(layout: Layout, table_bits: int, seed: int) -> dict[str, NDArray[Any]]:
    """The TensorFlow part of a fresh state; NumPy generators, so a seed means the same bytes."""
    table = np.zeros((1 << table_bits, layout.row_width), np.float32)
    dense = np.zeros(layout.dense_size, np.float32)
    if layout.deep:
        start = 2 * layout.linear
        weights = np.random.default_rng([seed, 1]).standard_normal(
            (len(table), layout.dim), dtype=np.float32
        )
        table[:, start : start + layout.dim] = weights * np.float32(EMBEDDING_DEVIATION)
        table[:, start + layout.dim :] = ADAGRAD_START
        draw = np.random.default_rng([seed, 2])
        at = 0
        for fan_in, fan_out in layout.layers[:-1]:  # the last stays 0: fresh, it answers the rate
            kernel = draw.standard_normal(fan_in * fan_out) * np.sqrt(2 / (fan_in + fan_out))
            dense[at : at + kernel.size] = kernel
            at += (fan_in + 1) * fan_out  # biases follow their kernel and start at 0
    return {
        "table": table,
        "linear": np.zeros((layout.columns if layout.linear else 0, 2), np.float32),
        "dense": dense,
        "dense_m": np.zeros_like(dense),
        "dense_v": np.zeros_like(dense),
    }


class Graph:
    """Variables of one model and the compiled functions over them."""

    def __init__(
        self,
        spec: ModelSpec,
        arrays: dict[str, NDArray[Any]],
        predict_rows: int,
        reweighted: bool = False,
    ):
        self._spec = spec
        self._layout = Layout.of(spec)
        self.variables = {name: tf.Variable(a, name=name) for name, a in arrays.items()}
        of_step = [tf.TensorSpec([spec.batch_size, 2], tf.float32), tf.TensorSpec([2], tf.float32)]
        if reweighted:
            of_step.append(tf.TensorSpec([], tf.float32))
        self.learn = self._compile(self._learn, [*self._inputs(spec.batch_size), *of_step])
        self.predict = self._compile(self._predict, self._inputs(predict_rows))

    def _inputs(self, rows: int) -> list[Any]:
        return [
            tf.TensorSpec([rows, self._layout.fields], tf.int32),
            tf.TensorSpec([rows, self._layout.columns], tf.float32),
            tf.TensorSpec([], tf.float32),
        ]

    @staticmethod
    def _compile(function: Callable[..., Tensor], signature: list[Any]) -> Any:
        compiled = tf.function(function, input_signature=signature, autograph=False)
        return compiled.get_concrete_function()

    def _predict(self, ids: Tensor, columns: Tensor, offset: Tensor) -> Tensor:
        rows = self.variables["table"].sparse_read(tf.reshape(ids, [-1]))
        logit = offset + tf.zeros_like(columns[:, 0])
        if self._layout.linear:
            logit += self._linear_logit(self._ftrl_weight(rows), columns)
        if self._layout.deep:
            logit += self._deep_logit(self.variables["dense"], self._embedding(rows), columns)
        return logit

    def _learn(
        self,
        ids: Tensor,
        columns: Tensor,
        offset: Tensor,
        weights: Tensor,
        powers: Tensor,
        *late_share: Tensor,
    ) -> Tensor:
        """One step; returns the sum of the batch's losses before it.

        weights: (rows, 2) positive and negative; powers: Adam's betas to the power of the step;
        late_share: that of positives that were negatives first; given when rows are reweighted.
        """
        table, dense = self.variables["table"], self.variables["dense"]
        positive, negative = weights[:, 0], weights[:, 1]
        unique, position = tf.unique(tf.reshape(ids, [-1]))
        held = table.sparse_read(unique)
        rows = tf.gather(held, position)
        logit = offset + tf.zeros_like(positive)
        if self._layout.linear:
            logit += self._linear_logit(self._ftrl_weight(rows), columns)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if self._layout.deep:
                flat, embedding = tf.identity(dense), self._embedding(rows)
                tape.watch([flat, embedding])
                deep = self._deep_logit(flat, embedding, columns)
                logit += deep
        if late_share:
            positive, negative = self._reweighted(positive, negative, logit, *late_share)
        # d/dlogit of -pw·log σ - nw·log(1-σ); for a correction (1, -1) it is exactly -1
        slope = (positive + negative) * tf.sigmoid(logit) - positive
        loss = positive * tf.nn.softplus(-logit) + negative * tf.nn.softplus(logit)
        pieces = []
        if self._layout.linear:
            pieces.append(tf.repeat(slope, self._layout.fields)[:, None])
            self._step_linear(tf.linalg.matvec(columns, slope, transpose_a=True))
        if self._layout.deep:
            of_dense, of_embedding = tape.gradient(deep, [flat, embedding], output_gradients=slope)
            pieces.append(of_embedding)
            self._step_dense(of_dense / self._spec.batch_size, powers)
        summed = tf.math.unsorted_segment_sum(tf.concat(pieces, 1), position, tf.size(unique))
        table.scatter_update(tf.IndexedSlices(self._stepped_rows(held, summed), unique))
        return tf.reduce_sum(loss)

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

    def _stepped_rows(self, held: Tensor, gradient: Tensor) -> Tensor:
        parts = []
        if self._layout.linear:
            parts.append(self._ftrl(held[:, :2], gradient[:, 0]))
        if self._layout.deep:
            start, dim = 2 * self._layout.linear, self._layout.dim
            slope = gradient[:, int(self._layout.linear) :]
            sums = held[:, start + dim :] + slope * slope
            rate = self._spec.embedding_learning_rate
            parts += [held[:, start : start + dim] - rate * slope * tf.math.rsqrt(sums), sums]
        return tf.concat(parts, 1)

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
        z, n = rows[:, 0], rows[:, 1]
        spec = self._spec
        shrunk = tf.sign(z) * tf.maximum(tf.abs(z) - spec.ftrl_l1, 0.0)
        return -shrunk / ((spec.ftrl_beta + tf.sqrt(n)) / spec.ftrl_alpha + spec.ftrl_l2)

    def _ftrl(self, rows: Tensor, gradient: Tensor) -> Tensor:
        z, n = rows[:, 0], rows[:, 1]
        grown = n + gradient * gradient
        sigma = (tf.sqrt(grown) - tf.sqrt(n)) / self._spec.ftrl_alpha
        return tf.stack([z + gradient - sigma * self._ftrl_weight(rows), grown], 1)

    def _linear_logit(self, weights: Tensor, columns: Tensor) -> Tensor:
        by_row = tf.reshape(weights, [columns.shape[0], self._layout.fields])
        dense = self._ftrl_weight(self.variables["linear"].read_value())
        return tf.reduce_sum(by_row, 1) + tf.linalg.matvec(columns, dense)

    def _embedding(self, rows: Tensor) -> Tensor:
        start = 2 * self._layout.linear
        return rows[:, start : start + self._layout.dim]

    def _deep_logit(self, dense: Tensor, embedding: Tensor, columns: Tensor) -> Tensor:
        width = self._layout.fields * self._layout.dim
        layer = tf.concat([tf.reshape(embedding, [columns.shape[0], width]), columns], 1)
        at = 0
        for number, (fan_in, fan_out) in enumerate(self._layout.layers, start=1):
            end = at + fan_in * fan_out
            kernel = tf.reshape(dense[at:end], [fan_in, fan_out])
            layer = tf.matmul(layer, kernel) + dense[end : end + fan_out]
            if number < len(self._layout.layers):
                layer = tf.nn.relu(layer)
            at = end + fan_out
        return layer[:, 0]
