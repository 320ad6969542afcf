"""What prediction reads of a state, and its smaller forms.

A trainer's row is `[z, n | weights | accumulators]`; serving needs the one FTRL weight that (z, n)
stand for, and the embedding. Of dynamic ids only those that have a row are kept, with their keys.

`float16` stores embeddings and FTRL weights of ids as such. `int8` stores an embedding as int8
times a scale of its row, largest magnitude over 127 (symmetric, float32), and the FTRL weights as
float16: a single number has nobody to share a scale with. Dense weights stay float32: they are
few, and every row meets them.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec
from headrace.errors import InputError
from headrace.model.delta import State
from headrace.model.ids import admitted
from headrace.model.inputs import Statistics
from headrace.model.layout import Layout
from headrace.model.runtime import tf
from headrace.model.step import ftrl_weight

Quantize = Literal["int8", "float16"]
LEVELS: Final = 127  # of int8 on either side of 0
_OF_IDS: Final = ("by_id", "embedding", "wide")


def weights(spec: ModelSpec, state: State, *, conversion: bool = False) -> State:
    """Arrays that prediction reads, as far as the family has them.

    `by_id` float32 (rows,), `embedding` float32 (rows, dim): the table; `wide` float32 (rows,);
    `linear` float32 (columns,), `dense` float32: see `model.step`; `mean`, `deviation` float64
    (numbers,), `offset` float32 (): see `model.inputs.Statistics`; `keys` int64, rising: of the
    dynamic ids whose rows follow the defaults in the table. With `conversion` the FTRL weights and
    the offset have one more axis, the two tasks.
    """
    layout = Layout.of(spec, 1 + conversion)
    statistics = Statistics(state["moments"], state["classes"])
    mean, deviation = statistics.scale()
    offset = [statistics.offset(), *([statistics.conversion_offset()] if conversion else [])]
    arrays: State = {"mean": mean, "deviation": deviation}
    arrays["offset"] = np.array(offset, np.float32) if conversion else np.array(offset[0])
    table = state["table"]
    if spec.ids == "dynamic":
        arrays["keys"], rows = admitted(state["ids"])
        table = table[np.concatenate([np.arange(2 * layout.fields), rows])]
    if layout.linear:
        arrays["by_id"] = _derived(spec, table, layout)
        arrays["linear"] = _derived(spec, state["linear"], layout)
    if layout.wide:
        arrays["wide"] = _derived(spec, state["wide"], layout)
    if layout.deep:
        arrays["embedding"] = table[:, layout.weights].copy()
        arrays["dense"] = state["dense"]
    return arrays


def quantized(arrays: State, kind: Quantize | None) -> State:
    """The same with smaller tables; `scale` float32 (rows,) stands beside an int8 embedding.

    Raises `InputError` where there is nothing to make int8 of, or a weight is too large.
    """
    if kind is None:
        return arrays
    if kind == "int8" and "embedding" not in arrays:
        raise InputError(
            "--quantize int8: family ftrl has one weight an id and no embeddings; use float16"
        )
    small = dict(arrays)
    for name in _OF_IDS:
        if name not in arrays:
            continue
        if kind == "int8" and name == "embedding":
            small["scale"], small[name] = _scaled(arrays[name])
            continue
        with np.errstate(over="ignore"):  # told below
            small[name] = arrays[name].astype(np.float16)
        if not np.isfinite(small[name]).all():
            raise InputError(
                f"--quantize {kind}: a weight of {name!r} is {np.abs(arrays[name]).max():g}, "
                "beyond float16; export it without"
            )
    return small


def size_of(arrays: State) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in arrays.values())


def _scaled(table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    scale = np.abs(table).max(axis=1) / np.float32(LEVELS)
    shares = table / np.where(scale > 0, scale, np.float32(1))[:, None]
    return scale, np.rint(shares).astype(np.int8)


def _derived(spec: ModelSpec, rows: NDArray[Any], layout: Layout) -> NDArray[np.float32]:
    """By the trainer's own function, compiled as in its graph: compiled otherwise, it rounds so."""
    compiled = tf.function(
        lambda rows: ftrl_weight(spec, rows[:, 0], rows[:, 1]),
        input_signature=[tf.TensorSpec([None, 2], tf.float32)],
        autograph=False,
    )
    derived = [compiled(rows[:, 2 * task : 2 * task + 2]).numpy() for task in range(layout.tasks)]
    return derived[0] if layout.tasks == 1 else np.stack(derived, 1)
