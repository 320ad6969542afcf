"""The model of a line: its family, its inputs and how it learns."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from headrace.declaration.base import Declared, DurationUs


class ModelSpec(Declared):
    """Family and hyper-parameters. `categorical` and `numeric` name request features.

    `wide` names those of `categorical` that only the linear part of `ftrl_deep` learns, such as
    crosses: they cost no embedding (Cheng et al., "Wide & Deep Learning", 2016).
    `ids: dynamic` gives an id a row of its own once it was learned `admit_after` times, and takes
    it back after `expire_after` of event time without it; `wide` ids stay hashed.
    `precision` is that of the network's products of matrices; what is stored, added up and
    stepped stays float32. `replay_share` of the rows of an incremental training are older ones.
    """

    family: Literal["ftrl", "deep", "ftrl_deep", "dcn"] = "ftrl_deep"
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    ids: Literal["hashed", "dynamic"] = "hashed"
    admit_after: int = Field(1, ge=1)
    expire_after: DurationUs | None = None
    table_bits: int = Field(18, ge=8, le=26)
    embedding_dim: int = Field(8, ge=1, le=128)
    hidden: tuple[int, ...] = (32, 16)
    cross_layers: int = Field(2, ge=1, le=8)
    cross_rank: int = Field(16, ge=1, le=512)
    batch_size: int = Field(256, ge=1, le=65536)
    epochs: int = Field(1, ge=1, le=100)
    ftrl_alpha: float = Field(0.05, gt=0)
    ftrl_beta: float = Field(1.0, ge=0)
    ftrl_l1: float = Field(0.0, ge=0)
    ftrl_l2: float = Field(1.0, ge=0)
    embedding_learning_rate: float = Field(0.05, gt=0)
    dense_learning_rate: float = Field(0.002, gt=0)
    learning_rate_floor: float = Field(0.0, ge=0, lt=1)
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    replay_share: float = Field(0.0, ge=0, le=0.9)

    @model_validator(mode="after")
    def _has_inputs(self) -> Self:
        if not self.categorical and not self.numeric:
            raise ValueError("model needs at least one categorical or numeric feature")
        return self

    @model_validator(mode="after")
    def _wide_fits(self) -> Self:
        if self.wide and self.family != "ftrl_deep":
            raise ValueError(f"wide is for family ftrl_deep, not {self.family}; remove it")
        for name in self.wide:
            if name not in self.categorical:
                raise ValueError(f"wide: {name!r} is not in categorical; add it there")
        return self

    @model_validator(mode="after")
    def _floor_has_a_start(self) -> Self:
        if self.learning_rate_floor and not self.ftrl_beta and self.family != "deep":
            raise ValueError(
                "learning_rate_floor is a share of the first rate, which ftrl_beta: 0 makes "
                "infinite; give ftrl_beta a value"
            )
        return self

    @model_validator(mode="after")
    def _ids_fit(self) -> Self:
        dynamic = self.ids == "dynamic"
        if not dynamic and (self.admit_after != 1 or self.expire_after is not None):
            raise ValueError("admit_after and expire_after are for ids: dynamic; declare it")
        if dynamic and not self.embedded:
            raise ValueError("ids: dynamic needs a categorical feature that is not wide")
        return self

    @property
    def embedded(self) -> tuple[str, ...]:
        """The categorical features that are not `wide`."""
        return tuple(name for name in self.categorical if name not in self.wide)
