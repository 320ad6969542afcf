"""What the guard asks of a champion that serves."""

from __future__ import annotations

from pydantic import Field

from headrace.declaration.base import Declared, DurationUs


class GuardSpec(Declared):
    """What a champion must keep up while it serves (docs/adr/0032).

    Evidence gathers afresh every `window` of its reign; within one, each champion that keeps what
    it promised is alarmed about with probability `alpha` at most, however often it is looked at.
    `max_logloss_increase`: nats above the log loss of its evidence. `max_score_shift`: distance
    (Kolmogorov-Smirnov) between the scores it gives and those it gave in its evidence.
    """

    alpha: float = Field(0.01, gt=0, lt=0.5)
    window: DurationUs = 600_000_000
    every: DurationUs = 5_000_000
    min_requests: int = Field(100, ge=2)
    max_logloss_increase: float = Field(0.05, ge=0)
    max_score_shift: float = Field(0.3, gt=0, le=1)
    calibration: tuple[float, float] = (0.5, 2.0)
    rollback: bool = True
