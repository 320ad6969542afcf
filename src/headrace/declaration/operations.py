"""What people and clusters are asked for when a line is rolled back or tuned, or its steps run."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import Field, field_validator

from headrace.declaration.base import Declared, DurationUs, Name

_WORD: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL: Final = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_WORD}")
_LABEL_VALUE: Final = re.compile(rf"({_WORD})?")


class RollbackSpec(Declared):
    """`approval`: a person has to agree before Airflow rolls the line back, within `wait`.

    The verb `headrace line rollback` and the guard ask nobody.
    """

    approval: bool = False
    wait: DurationUs = 3_600_000_000


class TuneSpec(Declared):
    """A search for a better model, by successive halving (Jamieson and Talwalkar 2016).

    `space`: keys of `model`, each with the values to try. `trials` combinations at most, drawn by
    the line's `seed`, and the model as it is are trained on a quarter of the newest history; the
    better half of them on half of it, the better half of those on all. `confidence`: with which
    the best has to beat the model as it is, to become a challenger.
    """

    space: dict[Name, tuple[Any, ...]] = Field(min_length=1)
    trials: int = Field(8, ge=1, le=256)
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @field_validator("space")
    @classmethod
    def _something_to_try(cls, space: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in space.items():
            if not values:
                raise ValueError(f"{name}: no values; give some to try, or remove the key")
        return space


class ResourcesSpec(Declared):
    """What each container of a pipeline asks a cluster for; None leaves it to the cluster.

    `cpu` and `memory` as Kubernetes writes them (`2`, `500m`; `4G`); `accelerators` of the kind
    `accelerator` are for the container of the training alone. `node_selector`: labels that a node
    must have; those in `training_node_selector` join them for the containers that train. Runs on
    one machine ask for nothing.
    """

    cpu: str | None = Field(None, pattern=r"^[0-9]+m?$|^[0-9]+\.[0-9]+$")
    memory: str | None = Field(None, pattern=r"^[0-9]+(\.[0-9]+)?([KMGT]i?)?$")
    accelerator: str = "nvidia.com/gpu"
    accelerators: int = Field(0, ge=0, le=16)
    node_selector: dict[str, str] = Field(default_factory=dict)
    training_node_selector: dict[str, str] = Field(default_factory=dict)

    @field_validator("node_selector", "training_node_selector")
    @classmethod
    def _labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not _LABEL.fullmatch(key):
                raise ValueError(
                    f"{key!r} is no label of a node; write [prefix/]name as `kubectl get nodes "
                    "--show-labels` prints it"
                )
            if not _LABEL_VALUE.fullmatch(value):
                raise ValueError(
                    f"{key}: {value!r} is no label's value; write at most 63 letters, digits, "
                    "dashes, dots and underscores"
                )
        return labels
