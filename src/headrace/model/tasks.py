"""Two tasks on one impression: a click, and a conversion given a click.

ESMM: Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
Conversion Rate", SIGIR 2018. With p of the click and q of the conversion given it, the losses are
those of the click (p) and of click-and-conversion (p·q), both over all impressions; q is never
trained on clicks alone, so it does not learn a world in which everybody clicks. Each task has its
own linear weights and its own tower; embeddings are shared.
"""

from __future__ import annotations

from typing import Any, ClassVar

from headrace.model.peers import Peers
from headrace.model.runtime import tf
from headrace.model.step import Graph

Tensor = Any  # tensorflow has no types that mypy could follow


def entire_space(weights: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and their slopes (rows, 2) by the logits a of the click, b of the conversion.

    weights: (rows, 4) positive and negative of the click, then of click-and-conversion, whose
    logit is c = -log(e^-a + e^-b + e^-(a+b)), with dc/da = (1-p)/(1-pq) and dc/db = (1-q)/(1-pq).
    """
    a, b = logits[:, 0], logits[:, 1]
    no_click, no_conversion = tf.nn.softplus(-a), tf.nn.softplus(-b)
    c = -tf.reduce_logsumexp(tf.stack([-a, -b, -a - b]), 0)
    of_click, click_loss = _logistic(weights[:, 0], weights[:, 1], a)
    of_both, both_loss = _logistic(weights[:, 2], weights[:, 3], c)
    slopes = (
        of_click + of_both * tf.exp(no_conversion + c - a),
        of_both * tf.exp(no_click + c - b),
    )
    return click_loss + both_loss, tf.stack(slopes, 1)


def _logistic(positive: Tensor, negative: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and loss of -positive·log σ - negative·log(1-σ); of a correction (1, -1) exactly -1."""
    slope = (positive + negative) * tf.sigmoid(logit) - positive
    return slope, positive * tf.nn.softplus(-logit) + negative * tf.nn.softplus(logit)


class TwoTasks(Graph):
    """The step of a model with conversions: logits are (rows, 2).

    A row of a table holds the (z, n) of both tasks before the shared embedding; the flat vector
    holds the tower of the click, then that of the conversion.
    """

    tasks: ClassVar[int] = 2

    def _learn(self, ids: Tensor, columns: Tensor, weights: Tensor, scalars: Tensor) -> Tensor:
        """One step; returns the sum of the batch's losses before it, of both tasks.

        weights: (rows, 4), see `entire_space`; scalars: those of one task, then the offset of the
        conversion's logit.
        """
        layout, table = self._layout, self.variables["table"]
        ids, wide = tf.split(ids, [layout.fields, layout.wide], axis=1)
        unique, position = tf.unique(tf.reshape(ids, [-1]))
        held = table.sparse_read(unique)
        logits = tf.stack([scalars[0], scalars[4]]) + tf.zeros([columns.shape[0], 2])
        if layout.linear:
            by_id = tf.gather(self._ftrl_weights(held), position)
            logits += self._sums(by_id, columns, layout.fields)
            logits += tf.matmul(columns, self._ftrl_weights(self.variables["linear"].read_value()))
        if layout.wide:
            of_wide = tf.unique(tf.reshape(wide, [-1]))
            held_wide = self.variables["wide"].sparse_read(of_wide.y)
            by_id = tf.gather(self._ftrl_weights(held_wide), of_wide.idx)
            logits += self._sums(by_id, columns, layout.wide)
        peers = self._peers if layout.deep else Peers()  # only a network is worth sharing
        part = peers.share(self._spec.batch_size)
        logits = logits[part]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if layout.deep:
                parameters = self._parameters()
                of_part = tf.reshape(position, [self._spec.batch_size, layout.fields])[part]
                rows = tf.gather(held[:, layout.weights], tf.reshape(of_part, [-1]))
                embedding = self._side_by_side(rows, columns[part])
                tape.watch([embedding, *parameters])
                deep = self._towers(parameters, embedding, columns[part])
                logits += deep
        loss, slopes = entire_space(weights[part], logits)
        by_row, flat = [slopes, loss], tf.zeros([0])
        if layout.deep:
            of_embedding, *of_dense = tape.gradient(
                deep, [embedding, *parameters], output_gradients=slopes
            )
            by_row.append(of_embedding)
            flat = tf.concat([tf.reshape(part, [-1]) for part in of_dense], 0)
        (slopes, loss, *by_row), flat = peers.exchange(by_row, flat, self._spec.batch_size)
        stepped = []
        if layout.linear:
            linear = self.variables["linear"]
            of_columns = tf.matmul(columns, slopes, transpose_a=True)
            linear.assign(self._ftrl_both(linear.read_value(), of_columns))
            by_id = self._summed(tf.repeat(slopes, layout.fields, 0), position, unique)
            stepped.append(self._ftrl_both(held, by_id))
        if layout.wide:
            by_id = self._summed(tf.repeat(slopes, layout.wide, 0), of_wide.idx, of_wide.y)
            stepped_wide = tf.IndexedSlices(self._ftrl_both(held_wide, by_id), of_wide.y)
            self.variables["wide"].scatter_update(stepped_wide)
        if layout.deep:
            self._step_dense(flat / self._spec.batch_size, scalars[1:3])
            by_id = tf.reshape(by_row[0], [-1, layout.dim])
            stepped.append(self._adagrad(held, self._summed(by_id, position, unique)))
        table.scatter_update(tf.IndexedSlices(tf.concat(stepped, 1), unique))
        return tf.reduce_sum(loss)

    def _parameters(self) -> list[Tensor]:
        """The parameters of both towers, one list after the other."""
        flat = tf.split(self.variables["dense"].read_value(), [n.size for n in self._networks])
        towers = zip(self._networks, flat, strict=True)
        return [part for network, vector in towers for part in network.split(vector)]

    def _towers(self, parameters: list[Tensor], embedding: Tensor, columns: Tensor) -> Tensor:
        half = len(parameters) // 2
        parts = (parameters[:half], parameters[half:])
        towers = zip(self._networks, parts, strict=True)
        return tf.stack([network.logit(part, embedding, columns) for network, part in towers], 1)

    def _ftrl_weights(self, rows: Tensor) -> Tensor:
        return tf.stack([self._ftrl_weight(rows[:, at : at + 2]) for at in (0, 2)], 1)

    def _ftrl_both(self, rows: Tensor, gradient: Tensor) -> Tensor:
        tasks = enumerate((rows[:, 0:2], rows[:, 2:4]))
        return tf.concat([self._ftrl(part, gradient[:, task]) for task, part in tasks], 1)

    @staticmethod
    def _sums(by_id: Tensor, columns: Tensor, fields: int) -> Tensor:
        return tf.reduce_sum(tf.reshape(by_id, [columns.shape[0], fields, 2]), 1)
