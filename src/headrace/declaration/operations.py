"""What people and clusters are asked for when a line is rolled back or tuned, or its steps run."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from headrace.declaration.base import Declared, DurationUs, Name


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
    `accelerator` are for the container of the training alone. Runs on one machine ask for nothing.
    """

    cpu: str | None = Field(None, pattern=r"^[0-9]+m?$|^[0-9]+\.[0-9]+$")
    memory: str | None = Field(None, pattern=r"^[0-9]+(\.[0-9]+)?([KMGT]i?)?$")
    accelerator: str = "nvidia.com/gpu"
    accelerators: int = Field(0, ge=0, le=16)
