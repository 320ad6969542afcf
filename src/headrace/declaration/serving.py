"""How the scoring server of a line behaves; nothing that a score depends on."""

from __future__ import annotations

from typing import Literal

from headrace.declaration.base import Declared


class ServingSpec(Declared):
    """`log_policy` says what gives way when the served log is full.

    `refuse`: the request (503), because a vector that is not logged is never learned from.
    `shed`: the log; the request is answered and its rows are counted as shed.
    """

    log_policy: Literal["refuse", "shed"] = "refuse"
