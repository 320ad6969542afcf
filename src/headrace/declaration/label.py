"""What a line predicts, and how an answer that comes late is learned."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from headrace.declaration.base import Declared, DurationUs, Name
from headrace.declaration.conversion import ConversionSpec

DelayedFeedback = Literal["correct", "naive", "wait", "fnw", "esdfm"]


class LabelSpec(Declared):
    """What is predicted: whether `engagement` follows an impression inside the window.

    `provisional_after`: an impression without an engagement becomes a provisional negative
    after this wait and is corrected if one comes later inside the window. Without it a
    sample waits for an engagement or for the end of the window. `outcome: explicit` means that
    negatives are reported too (an engagement record with value 0); silence then never becomes
    a label: the impression ends as `unlabelled` when its window closes.

    `delayed_feedback` is how an engagement that comes late is learned (docs/adr/0010):
    `correct` takes the provisional negative back; `naive` leaves it; `wait` emits no provisional
    negative; `fnw` emits every impression as a negative at once and weighs both classes by the
    model's own prediction (Ktena et al. 2019), and only the gates wait `provisional_after`
    before they believe silence; `esdfm` weighs what was late (Yang et al. 2021).
    `negative_rate` is the share of negatives that training keeps, each at weight 1/rate.
    `conversion` makes the line a model of two tasks (docs/adr/0024).
    """

    engagement: Name
    outcome: Literal["implicit", "explicit"] = "implicit"
    attribution_window: DurationUs
    provisional_after: DurationUs | None = None
    delayed_feedback: DelayedFeedback = "correct"
    negative_rate: float = Field(1.0, gt=0, le=1)
    conversion: ConversionSpec | None = None

    @property
    def events(self) -> tuple[str, ...]:
        """The events that an application may report."""
        after = () if self.conversion is None else (self.conversion.engagement,)
        return ("impression", self.engagement, *after)

    @property
    def patience_us(self) -> int:
        """How long an impression may stay silent before it becomes a (provisional) negative."""
        if self.delayed_feedback == "fnw":
            return 0
        return self.provisional_after or self.attribution_window

    @model_validator(mode="after")
    def _wait_inside_window(self) -> Self:
        if self.provisional_after is not None and self.provisional_after > self.attribution_window:
            raise ValueError("provisional_after is longer than attribution_window; shorten it")
        if self.provisional_after is not None and self.outcome == "explicit":
            raise ValueError("outcome: explicit waits for outcomes; remove provisional_after")
        return self

    @model_validator(mode="after")
    def _feedback_fits(self) -> Self:
        policy = self.delayed_feedback
        if policy == "wait" and self.provisional_after is not None:
            raise ValueError(
                "delayed_feedback: wait waits for the window; remove provisional_after"
            )
        if policy in ("naive", "fnw", "esdfm") and self.provisional_after is None:
            raise ValueError(f"delayed_feedback: {policy} needs provisional_after; declare it")
        return self

    @model_validator(mode="after")
    def _conversion_fits(self) -> Self:
        conversion = self.conversion
        if conversion is None:
            return self
        if conversion.engagement in ("impression", "mark", self.engagement):
            raise ValueError(
                f"conversion.engagement: {conversion.engagement!r} is an event of its own already; "
                "name the event that follows the click"
            )
        if (conversion.provisional_after or 0) > conversion.attribution_window:
            raise ValueError(
                "conversion.provisional_after is longer than conversion.attribution_window; "
                "shorten it"
            )
        if self.outcome == "explicit":
            raise ValueError("conversion follows a click; remove outcome: explicit")
        if self.delayed_feedback in ("fnw", "esdfm"):
            raise ValueError(
                f"delayed_feedback: {self.delayed_feedback} weighs one task; with conversion "
                "declare correct, naive or wait"
            )
        return self
