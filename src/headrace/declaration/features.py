"""What a model sees: window features of the log, and features made at request time."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.declaration.base import Declared, DurationUs, Name, Produces


class WindowFeature(Declared):
    """An integer aggregate of one kind of event for a key over `[t - window, t)` of knowledge time.

    `event` is `impression` or an engagement's name. `count` counts events; `sum` adds
    `column` (an int column, or `value`: 1 for an engagement, 0 for an explicit negative outcome).
    """

    name: Name
    key: tuple[str, ...] = Field(min_length=1)
    event: Name
    aggregate: Literal["count", "sum"]
    column: str = "value"
    window: DurationUs


class TimePart(Declared):
    """`hour_of_day` (0-23) or `day_of_week` (0 = Monday) of the request, in the line's timezone."""

    name: Name
    kind: Literal["hour_of_day", "day_of_week"]

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    @property
    def produces(self) -> Produces:
        return "id"


class Hash(Declared):
    """The 63-bit id of a text or int column; missing is -1."""

    name: Name
    kind: Literal["hash"]
    of: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def produces(self) -> Produces:
        return "id"


class Cross(Declared):
    """The 63-bit id of a tuple of columns or ids; missing parts count as a value of their own."""

    name: Name
    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.of

    @property
    def produces(self) -> Produces:
        return "id"


class Bucketize(Declared):
    """The index of the bucket `boundaries[i-1] <= x < boundaries[i]`; missing is -1."""

    name: Name
    kind: Literal["bucketize"]
    of: str
    boundaries: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise ValueError("boundaries must rise strictly")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def produces(self) -> Produces:
        return "id"


class Ratio(Declared):
    """`(numerator + a) / (denominator + a + b)` with `prior: [a, b]`, one float64 division."""

    name: Name
    kind: Literal["ratio"]
    of: tuple[str, str]
    prior: tuple[float, float]

    @model_validator(mode="after")
    def _prior_positive(self) -> Self:
        if min(self.prior) < 0 or sum(self.prior) <= 0:
            raise ValueError("prior needs two numbers >= 0 with a sum > 0")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.of

    @property
    def produces(self) -> Produces:
        return "number"


class Number(Declared):
    """A number as it is (`number`) or as `log1p(max(x, 0))`; missing is NaN."""

    name: Name
    kind: Literal["number", "log1p"]
    of: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def produces(self) -> Produces:
        return "number"


RequestFeature = Annotated[
    TimePart | Hash | Cross | Bucketize | Ratio | Number, Field(discriminator="kind")
]
