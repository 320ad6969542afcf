"""The dense part of a model: its shapes, its fresh weights and its forward pass.

All weights lie in one flat vector, in the order of `shapes`, so that one fused Adam steps them.
`deep`: ReLU layers over the embeddings and the dense columns, one output. `dcn` adds, in
parallel, the low-rank cross layers of DCN-V2 (Wang et al., "DCN V2: Improved Deep & Cross
Network", 2021): x_{l+1} = x_0 ⊙ (x_l V_l U_l + b_l) + x_l, and a linear output over the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import prod
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec
from headrace.model.runtime import tf

Tensor = Any  # tensorflow has no types that mypy could follow
_STREAMS = (2, 3)  # of random numbers, by task


@dataclass(frozen=True)
class Network:
    """Shapes that follow from a declaration; `width` embedding numbers and `columns` others."""

    width: int
    columns: int
    hidden: tuple[int, ...]
    cross_layers: int
    cross_rank: int
    bfloat16: bool = False
    stream: int = 2

    @classmethod
    def of(cls, spec: ModelSpec, columns: int, task: int = 0) -> Network:
        """The network of a declared model for its first task, the click, or its second.

        Tasks share the embeddings and nothing else; each draws its fresh weights for itself.
        """
        crosses = spec.cross_layers if spec.family == "dcn" else 0
        width = len(spec.embedded) * spec.embedding_dim
        low = spec.precision == "bfloat16"
        return cls(width, columns, spec.hidden, crosses, spec.cross_rank, low, _STREAMS[task])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Kernel and bias of each layer; then V, U, b of each cross layer; then their output."""
        inputs = self.width + self.columns
        layers = pairwise((inputs, *self.hidden, 1))
        shapes: list[tuple[int, ...]] = [shape for i, o in layers for shape in ((i, o), (o,))]
        if self.cross_layers:
            cross = [(inputs, self.cross_rank), (self.cross_rank, inputs), (inputs,)]
            shapes += [*cross * self.cross_layers, (inputs, 1)]
        return shapes

    def initial(self, seed: int) -> NDArray[np.float32]:
        """Fresh weights, flat: Glorot normal kernels; biases and both outputs start at 0.

        With outputs of 0 a fresh model answers the rate of positives, whatever the row.
        """
        draw = np.random.default_rng([seed, self.stream])
        outputs = {2 * len(self.hidden)} | ({len(self.shapes) - 1} if self.cross_layers else set())
        parts = []
        for place, shape in enumerate(self.shapes):
            part = np.zeros(prod(shape), np.float32)
            if len(shape) == 2 and place not in outputs:
                part[:] = draw.standard_normal(part.size) * np.sqrt(2 / sum(shape))
            parts.append(part)
        return np.concatenate(parts)

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(prod(shape) for shape in self.shapes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The flat vector as tensors of `shapes`."""
        parts = tf.split(flat, [prod(shape) for shape in self.shapes])
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def cut(self, parameters: list[Tensor]) -> list[Tensor]:
        """The same parameters as products take them: the first kernel in two, for the embeddings
        and for the columns; matrices in their precision.
        """
        first, *rest = parameters
        parts = [first[: self.width], first[self.width :], *rest]
        if not self.bfloat16:
            return parts
        return [tf.cast(p, tf.bfloat16) if len(p.shape) == 2 else p for p in parts]

    def column(self, parts: list[Tensor], embedding: Tensor, columns: Tensor) -> Tensor:
        """Logits (rows, 1) of embeddings (rows, width) and columns (rows, columns), by `cut`."""
        return reduce(add, self._terms(parts, embedding, columns))

    def logit(self, parameters: list[Tensor], embedding: Tensor, columns: Tensor) -> Tensor:
        """The same logits as (rows,), by `split`: a function of what gradients are taken of."""
        terms = self._terms(self.cut(parameters), embedding, columns)
        return reduce(add, [term[:, 0] for term in terms])

    def _terms(self, parts: list[Tensor], embedding: Tensor, columns: Tensor) -> list[Tensor]:
        """What the logits are the sum of, each (rows, 1)."""
        of_layers = 2 * (len(self.hidden) + 1) + 1
        terms = [self._deep(parts[:of_layers], embedding, columns)]
        if self.cross_layers:
            terms.append(self._cross(parts[of_layers:], tf.concat([embedding, columns], 1)))
        return terms

    def _deep(self, parts: list[Tensor], embedding: Tensor, columns: Tensor) -> Tensor:
        # two products cost less than joining both inputs in memory
        layer = self._product(embedding, parts[0])
        layer += self._product(columns, parts[1])
        layer += parts[2]
        for kernel, bias in zip(parts[3::2], parts[4::2], strict=True):
            layer = self._product(tf.nn.relu(layer), kernel) + bias
        return layer

    def _cross(self, parts: list[Tensor], first: Tensor) -> Tensor:
        layer = first
        for at in range(0, 3 * self.cross_layers, 3):
            down, up, bias = parts[at : at + 3]
            layer += first * (self._product(self._product(layer, down), up) + bias)
        return self._product(layer, parts[-1])

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """Product of matrices; in bfloat16 its gradients are such products too, and two rows that
        should cancel do so to 8 bits."""
        if not self.bfloat16:
            return tf.matmul(left, right)
        product = tf.matmul(tf.cast(left, tf.bfloat16), tf.cast(right, tf.bfloat16))
        return tf.cast(product, tf.float32)
