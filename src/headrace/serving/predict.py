"""Model inputs become probabilities: what a request, a batch and the follower of a log all call."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import EnvironmentFault
from headrace.line import Version
from headrace.model import Model
from headrace.model.inputs import Inputs


class Ready(Protocol):
    """A model in memory that stands at a version."""

    @property
    def version(self) -> Version: ...

    @property
    def model(self) -> Model: ...


def predict(ready: Ready, inputs: Inputs) -> dict[str, NDArray[np.float64]]:
    """Probabilities (n,) float64 by task of rows of `events.input_fields`, `click` first.

    A row's bits do not depend on the other rows. Raises `EnvironmentFault` for a version that gives
    a probability which is no number.
    """
    tasks = ready.model.predict_tasks(inputs)
    if not all(np.isfinite(scores).all() for scores in tasks.values()):
        raise EnvironmentFault(
            f"version {ready.version.version} gave a score that is not finite; roll it back"
        )
    return tasks
