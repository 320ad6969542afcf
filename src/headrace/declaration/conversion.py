"""What comes after the click: a second label of the same impression."""

from __future__ import annotations

from typing import Final

from headrace.declaration.base import Declared, DurationUs, Name

CONVERSION_COLUMNS: Final = frozenset(
    {"conversion", "conversion_positive_weight", "conversion_negative_weight"}
    | {"conversion_offset", "conversion_score", "click_and_conversion_score"}
)
"""Names that a line with conversions needs for itself in its samples."""


class ConversionSpec(Declared):
    """Whether `engagement` (a purchase, an install) follows the click of an impression.

    `attribution_window` counts from the click, by event time: `click <= conversion < click +
    window`. A sample says at once that there is no conversion, and is corrected when one comes;
    `provisional_after` (default: the window) is how long after an impression was served the gates
    wait before they believe that none will.
    """

    engagement: Name
    attribution_window: DurationUs
    provisional_after: DurationUs | None = None

    @property
    def patience_us(self) -> int:
        """How long after an impression was served the gates believe its missing conversion."""
        return self.provisional_after or self.attribution_window
