"""How the scoring server of a line behaves; nothing that a score depends on."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from headrace.declaration.base import Declared


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
    `rate` bounds the scoring requests (429); None takes what comes.
    """

    log_policy: Literal["refuse", "shed"] = "refuse"
    rate: RateSpec | None = None
