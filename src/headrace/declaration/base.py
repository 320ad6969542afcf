"""What all declared values share: frozen, strict about unknown keys, durations with a unit."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

ColumnType = Literal["string", "int", "float"]
Produces = Literal["id", "number"]

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"^(\d+)\s*(ms|s|m|h|d)$")
_NAME = r"^[a-z][a-z0-9_]*$"


def parse_duration_us(value: object) -> int:
    """Turn `"90s"` into 90_000_000 microseconds; a bare number is refused for want of a unit."""
    text = str(value).strip()
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(
            f"{value!r} is not a duration; write a whole number and a unit "
            "(ms, s, m, h, d), such as 30s, 10m, 1h or 7d"
        )
    return int(match[1]) * _UNITS_US[match[2]]


def _write_duration(duration_us: int) -> str:
    return f"{duration_us // 1_000}ms"


# In JSON a duration is text again, so that a dumped line can be parsed (the finest unit is ms).
DurationUs = Annotated[
    int,
    BeforeValidator(parse_duration_us),
    PlainSerializer(_write_duration, return_type=str, when_used="json"),
]
Name = Annotated[str, Field(pattern=_NAME)]


class Declared(BaseModel):
    """Base of all declared values: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
