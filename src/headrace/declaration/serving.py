"""How the scoring server of a line behaves; nothing that a score of its models depends on."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from headrace.declaration.base import Declared, DurationUs

Fallback = Literal["defaults", "previous", "prior"]


def _read_off(value: object) -> object:
    """`off` is no in YAML 1.1, which PyYAML reads as false."""
    return () if value is False or value == "off" else value


class RateSpec(Declared):
    """Scoring requests that one server takes: so many a second, and `burst` of them at once.

    Over REST and gRPC together, whoever asks. `burst` is one second's worth where it is left out.
    """

    per_second: float = Field(gt=0, le=1e6)
    burst: int | None = Field(None, ge=1, le=10_000_000)

    @property
    def at_once(self) -> int:
        return self.burst or math.ceil(self.per_second)


class ServingSpec(Declared):
    """`log_policy` says what gives way when the served log is full.

    `refuse`: the request (503), because a vector that is not logged is never learned from.
    `shed`: the log; the request is answered and its rows are counted as shed.

    `fallback`: who stands in, in this order, where features or model are missing; `off` (or an
    empty list) refuses the request (503). `defaults`: every window feature as if its key had never
    been seen. `previous`: the version that served before, of a challenger the champion. `prior`:
    for every candidate the label rate of the champion's training, without one the constant `prior`.
    `read_timeout`: how long a read of the online store may take before it counts as missing.
    `rate` bounds the scoring requests (429); None takes what comes.
    """

    log_policy: Literal["refuse", "shed"] = "refuse"
    fallback: Annotated[tuple[Fallback, ...], BeforeValidator(_read_off)] = (
        "defaults",
        "previous",
        "prior",
    )
    prior: float | None = Field(None, gt=0, lt=1)
    read_timeout: DurationUs = Field(250_000, gt=0)
    rate: RateSpec | None = None

    @field_validator("fallback")
    @classmethod
    def _in_an_order(cls, order: tuple[Fallback, ...]) -> tuple[Fallback, ...]:
        twice = {name for name in order if order.count(name) > 1}
        if twice:
            raise ValueError(f"{min(twice)!r} stands twice; remove one")
        if "prior" in order[:-1]:
            raise ValueError("prior can always answer, so nothing comes after it; put it last")
        return order
