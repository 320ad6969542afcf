"""What a model sees: window features of the log, and features made at request time."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from headrace.declaration.base import Declared, DurationUs, Name, Produces

MISSING: Final = -(2**63)  # what a window feature holds that has no value


class WindowFeature(Declared):
    """An integer aggregate of one kind of event for a key over `[t - window, t)` of knowledge time.

    `event` is `impression` or an engagement's name. `count` counts events; `sum` adds
    `column` (an int column, or `value`: 1 for an engagement, 0 for an explicit negative outcome).
    `min`, `max` (of an int column), `distinct` (the number of different values) and `last` (the
    newest value, or the `rank`-th newest) see only events whose `column` has a value; a text
    stands there as its 63-bit hash. `last_at` is the newest event's knowledge time in µs: it
    changes with events alone, where the time since then would change with every moment.
    """

    name: Name
    key: tuple[str, ...] = Field(min_length=1)
    event: Name
    aggregate: Literal["count", "sum", "min", "max", "distinct", "last", "last_at"]
    column: str = "value"
    window: DurationUs
    rank: int = Field(1, ge=1)

    @property
    def empty(self) -> int:
        """The value over no events: 0 where that is a number of them or a sum, else `MISSING`."""
        return 0 if self.aggregate in ("count", "sum", "distinct") else MISSING

    @property
    def reads(self) -> str | None:
        """The column whose values count, None where events alone do."""
        return None if self.aggregate in ("count", "last_at") else self.column

    @property
    def skips_missing(self) -> bool:
        """Whether an event without a value in `column` is as good as none."""
        return self.aggregate in ("min", "max", "distinct", "last")

    @model_validator(mode="after")
    def _says_what_it_reads(self) -> Self:
        given = "column" in self.model_fields_set
        if self.skips_missing and not given:
            raise ValueError(f"aggregate {self.aggregate!r} needs column: name one")
        if self.aggregate == "last_at" and given and self.column != "value":
            raise ValueError("aggregate 'last_at' is a time of events; remove column")
        if self.rank != 1 and self.aggregate != "last":
            raise ValueError(f"rank belongs to aggregate 'last', not to {self.aggregate!r}")
        return self

    @model_serializer(mode="wrap")
    def _without_default_rank(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # digests and checkpoints made before there were ranks stay valid
        written: dict[str, Any] = write(self)
        if self.rank == 1:
            written.pop("rank", None)
        return written


class Requested(Declared):
    """What request features share: a name, what they produce, and what they are made `of`."""

    produces: ClassVar[Produces]
    name: Name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns, windows and earlier request features that it reads."""
        of: str | tuple[str, ...] = getattr(self, "of", ())
        return (of,) if isinstance(of, str) else of


class TimePart(Requested):
    """`hour_of_day` (0-23) or `day_of_week` (0 = Monday) of the request, in the line's timezone."""

    produces: ClassVar[Produces] = "id"
    kind: Literal["hour_of_day", "day_of_week"]


class Hash(Requested):
    """The 63-bit id of a text or int column; missing is -1."""

    produces: ClassVar[Produces] = "id"
    kind: Literal["hash"]
    of: str


class Cross(Requested):
    """The 63-bit id of a tuple of columns or ids; missing parts count as a value of their own."""

    produces: ClassVar[Produces] = "id"
    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2)


class Bucketize(Requested):
    """The index of the bucket `boundaries[i-1] <= x < boundaries[i]`; missing is -1."""

    produces: ClassVar[Produces] = "id"
    kind: Literal["bucketize"]
    of: str
    boundaries: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise ValueError("boundaries must rise strictly")
        return self


class Ratio(Requested):
    """`(numerator + a) / (denominator + a + b)` with `prior: [a, b]`, one float64 division."""

    produces: ClassVar[Produces] = "number"
    kind: Literal["ratio"]
    of: tuple[str, str]
    prior: tuple[float, float]

    @model_validator(mode="after")
    def _prior_positive(self) -> Self:
        if min(self.prior) < 0 or sum(self.prior) <= 0:
            raise ValueError("prior needs two numbers >= 0 with a sum > 0")
        return self


class Mean(Requested):
    """`(sum + m * w) / (count + w)` with `prior: [m, w]`, a mean worth w events.

    Missing (NaN) where there is nothing to divide by, which takes w = 0.
    """

    produces: ClassVar[Produces] = "number"
    kind: Literal["mean"]
    of: tuple[str, str]
    prior: tuple[float, float]

    @model_validator(mode="after")
    def _weight_not_negative(self) -> Self:
        if not self.prior[1] >= 0:
            raise ValueError("prior is [mean, weight]; the weight must be >= 0")
        return self


class Since(Requested):
    """Seconds from a `last_at` window's moment to the request, at least 0; missing is NaN."""

    produces: ClassVar[Produces] = "number"
    kind: Literal["since"]
    of: str


class Number(Requested):
    """A number as it is (`number`) or as `log1p(max(x, 0))`; missing is NaN."""

    produces: ClassVar[Produces] = "number"
    kind: Literal["number", "log1p"]
    of: str


RequestFeature = Annotated[
    TimePart | Hash | Cross | Bucketize | Ratio | Mean | Since | Number, Field(discriminator="kind")
]
