"""Passes over prepared rows, from any point on: the loop of a full training.

A `Point` and the model's state are all that a training is: whoever has both goes on in the same
bytes. A checkpoint is one file that holds both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import safetensors.numpy

from headrace.atomic import write_bytes
from headrace.past import Rows

if TYPE_CHECKING:
    from headrace.model import Model, State

_POINT: Final = "training/point"


@dataclass(frozen=True)
class Point:
    """The next block to learn, in which epoch, and this epoch's loss and rows so far."""

    epoch: int = 0
    block: int = 0
    loss: float = 0.0
    rows: int = 0

    @property
    def mean_loss(self) -> float:
        return self.loss / self.rows if self.rows else 0.0


def learn(
    model: Model,
    rows: Rows,
    epochs: int,
    start: Point = Point(),
    after: Callable[[Point], None] = lambda point: None,
) -> Point:
    """Learn all blocks `epochs` times, from `start` on; returns the point at the end.

    Its loss is that of the last epoch. `after` each block it is told where the training stands.
    """
    point = start
    while point.epoch < epochs:
        if point.block == 0:
            point = Point(point.epoch)
        while point.block < rows.blocks:
            report = model.learn(rows.block(point.block))
            loss = point.loss + report.loss * report.rows
            point = Point(point.epoch, point.block + 1, loss, point.rows + report.rows)
            after(point)
        point = Point(point.epoch + 1, 0, point.loss, point.rows)
    return point


def save(path: Path, point: Point, state: State) -> None:
    """Write a checkpoint, whole or not at all."""
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    write_bytes(path, safetensors.numpy.save({**arrays, _POINT: np.array(astuple(point))}))


def load(path: Path) -> tuple[Point, State] | None:
    """The checkpoint there, None if there is none."""
    if not path.exists():
        return None
    state: State = safetensors.numpy.load_file(path)
    epoch, block, loss, rows = state.pop(_POINT).tolist()
    return Point(int(epoch), int(block), loss, int(rows)), state
