"""A line's features and its model in one graph, which scores as the server does.

The model sees `PREDICT_ROWS` rows at a time, the last ones filled up: the shape decides in which
order a matrix product adds, and so the last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.declaration import LineSpec
from headrace.export import hashes
from headrace.export.features import Features
from headrace.export.signature import specs
from headrace.model.batches import PREDICT_ROWS
from headrace.model.delta import State
from headrace.model.inputs import MAGNITUDE, SPREAD, field_salt
from headrace.model.layout import Layout
from headrace.model.model import LOGIT_LIMIT
from headrace.model.network import Network
from headrace.model.runtime import tf

Tensor = Any  # tensorflow has no types that mypy could follow


class Scorer(tf.Module):  # type: ignore[misc]
    """The variables of an exported version and the function that its signature names.

    `serve` takes the tensors of `signature.specs`, each (n,), n >= 0, and gives those of
    `signature.outputs`. An infinite number that the model would read is an
    InvalidArgument that names the feature, as the server refuses it.
    """

    def __init__(self, spec: LineSpec, arrays: State) -> None:
        super().__init__(name=spec.line)
        self._spec = spec.model
        self._layout = layout = Layout.of(spec.model, 1 + spec.converts)
        self._networks = [
            Network.of(spec.model, layout.columns, task) for task in range(layout.tasks)
        ]
        self._of_tasks = [2] if spec.converts else []  # the last axis of logits, where there is one
        self._features = Features(spec)
        self._fields = (*spec.model.embedded, *spec.model.wide)
        self._salts = np.array([field_salt(spec.seed, name) for name in self._fields], np.uint64)
        arrays = {"constants": self._features.constants, **arrays}
        self.held = {
            name: tf.Variable(array, trainable=False, name=name) for name, array in arrays.items()
        }
        self.serve = tf.function(
            self._serve, input_signature=[specs(spec)], autograph=False
        ).get_concrete_function()

    def _serve(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, numbers = self._features.inputs(inputs, self.held["constants"].read_value())
        size = tf.shape(inputs["request_at"])[0]
        logit = self._by_blocks(self._rows(ids, size), self._columns(numbers, size), size)
        clipped = tf.clip_by_value(tf.cast(logit, tf.float64), -LOGIT_LIMIT, LOGIT_LIMIT)
        probability = 1.0 / (1.0 + tf.exp(-clipped))
        if not self._of_tasks:
            return {"probability": probability, "logit": logit}
        click, conversion = probability[:, 0], probability[:, 1]
        return {
            "probability": click,
            "conversion": conversion,
            "click_and_conversion": click * conversion,
            "logit": logit[:, 0],
            "conversion_logit": logit[:, 1],
        }

    def _rows(self, ids: dict[str, Tensor], size: Tensor) -> Tensor:
        """Rows of the tables (n, fields), int64; those of `wide` ids last."""
        if not self._fields:
            return tf.zeros([size, 0], tf.int64)
        columns = tf.stack([ids[name] for name in self._fields], 1)
        keys = hashes.keys(columns, tf.constant(self._salts))
        if self._spec.ids == "hashed":
            return hashes.rows(keys, self._spec.table_bits)
        fields = self._layout.fields
        embedded = self._dynamic(tf.bitcast(keys[:, :fields], tf.int64), columns[:, :fields] == -1)
        return tf.concat([embedded, hashes.rows(keys[:, fields:], self._spec.table_bits)], 1)

    def _dynamic(self, keys: Tensor, missing: Tensor) -> Tensor:
        """Rows of dynamic ids: their own, or their field's default or missing row."""
        fields = self._layout.fields
        field = tf.broadcast_to(tf.range(fields, dtype=tf.int64), tf.shape(keys))
        found = field
        if count := int(self.held["keys"].shape[0]):
            known = self.held["keys"].read_value()
            flat = tf.reshape(keys, [-1])
            place = tf.minimum(tf.searchsorted(known, flat, out_type=tf.int64), count - 1)
            own = tf.where(tf.gather(known, place) == flat, 2 * fields + place, -1)
            own = tf.reshape(own, tf.shape(keys))
            found = tf.where(own >= 0, own, field)
        return tf.where(missing, field + fields, found)

    def _columns(self, numbers: dict[str, Tensor], size: Tensor) -> Tensor:
        """`Statistics.design`: a constant 1, standardised numbers, their missing indicators."""
        ones = tf.ones([size, 1], tf.float32)
        if not numbers:
            return ones
        for name, number in numbers.items():
            tf.debugging.Assert(
                tf.logical_not(tf.reduce_any(tf.math.is_inf(number))),
                [f"{name} is infinite; send a finite number, or NaN for missing"],
            )
        given = tf.stack(list(numbers.values()), 1)
        missing = tf.math.is_nan(given)
        clipped = tf.clip_by_value(given, -MAGNITUDE, MAGNITUDE)
        scaled = (clipped - self.held["mean"].read_value()) / self.held["deviation"].read_value()
        scaled = tf.where(missing, tf.zeros_like(scaled), tf.clip_by_value(scaled, -SPREAD, SPREAD))
        return tf.concat([ones, tf.cast(scaled, tf.float32), tf.cast(missing, tf.float32)], 1)

    def _by_blocks(self, rows: Tensor, columns: Tensor, size: Tensor) -> Tensor:
        blocks = (size + PREDICT_ROWS - 1) // PREDICT_ROWS
        lacking = [[0, blocks * PREDICT_ROWS - size], [0, 0]]
        rows, columns = tf.pad(rows, lacking), tf.pad(columns, lacking)

        def score(block: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
            at = [block * PREDICT_ROWS, 0]
            of_rows = tf.slice(rows, at, [PREDICT_ROWS, len(self._fields)])
            of_columns = tf.slice(columns, at, [PREDICT_ROWS, self._layout.columns])
            return block + 1, scored.write(block, self._logits(of_rows, of_columns))

        shape = [PREDICT_ROWS, *self._of_tasks]
        logits = tf.TensorArray(tf.float32, size=blocks, element_shape=shape)
        _, logits = tf.while_loop(lambda block, _: block < blocks, score, [0, logits])
        return tf.reshape(logits.stack(), [-1, *self._of_tasks])[:size]

    def _logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """What `model.step.Graph` (of two tasks, `model.tasks.TwoTasks`) predicts of one block,
        from derived weights: terms are added in its order.
        """
        layout = self._layout
        ids, wide = tf.split(rows, [layout.fields, layout.wide], axis=1)
        ids = tf.reshape(ids, [-1])
        logit = tf.zeros([PREDICT_ROWS, *self._of_tasks])
        if layout.linear:
            by_id, dense = self._by_row("by_id", ids), self.held["linear"].read_value()
            if self._of_tasks:
                logit = logit + by_id + tf.matmul(columns, dense)
            else:
                logit += by_id + tf.linalg.matvec(columns, dense)
        if layout.wide:
            logit += self._by_row("wide", tf.reshape(wide, [-1]))
        if layout.deep:
            logit += self._deep(self._embedded(ids), columns)
        return logit + self.held["offset"].read_value()

    def _deep(self, embedding: Tensor, columns: Tensor) -> Tensor:
        sizes = [network.size for network in self._networks]
        towers = zip(self._networks, tf.split(self.held["dense"].read_value(), sizes), strict=True)
        logits = [
            network.logit(network.split(flat), embedding, columns) for network, flat in towers
        ]
        return tf.stack(logits, 1) if self._of_tasks else logits[0]

    def _embedded(self, ids: Tensor) -> Tensor:
        embedding = self._read("embedding", ids)
        if "scale" in self.held:
            embedding *= self._read("scale", ids)[:, None]
        return tf.reshape(embedding, [PREDICT_ROWS, self._layout.fields * self._layout.dim])

    def _by_row(self, name: str, ids: Tensor) -> Tensor:
        """Sums over a row's ids of their weights."""
        fields = ids.shape[0] // PREDICT_ROWS
        by_id = tf.reshape(self._read(name, ids), [PREDICT_ROWS, fields, *self._of_tasks])
        return tf.reduce_sum(by_id, 1)

    def _read(self, name: str, rows: Tensor) -> Tensor:
        return tf.cast(self.held[name].sparse_read(rows), tf.float32)
