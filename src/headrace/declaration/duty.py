"""What the guard asks of a champion that serves, and what drift leads to."""

from __future__ import annotations

from typing import Literal

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


Outcome = Literal["alarm", "retrain", "freeze"]


class DriftSpec(Declared):
    """What `headrace drift` holds the newest `window` against, and what follows (docs/adr/0044).

    `max_shift`: population stability index of an input, of scores and of the label delay that is
    drift, unless the past moves as much. `max_false_alarms`: of the test of the loss, a day.
    `inputs`, `score`, `delay`, `concept`: what each kind of drift leads to.
    """

    window: DurationUs = 600_000_000
    max_shift: float = Field(0.25, gt=0)
    max_false_alarms: float = Field(0.1, gt=0)
    inputs: Outcome = "alarm"
    score: Outcome = "alarm"
    delay: Outcome = "alarm"
    concept: Outcome = "alarm"
