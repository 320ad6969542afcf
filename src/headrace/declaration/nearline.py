"""Scores that follow a log of the line, as files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headrace.declaration.base import Declared, DurationUs


class NearlineSpec(Declared):
    """With it the stack scores a log as it grows (`headrace score-log`).

    `of`: impressions as they arrive, or requests as they were answered. `every`: pause between two
    looks; each writes a file at most. `keep`: age from which files go, by the moment they were
    written; the newest stays.
    """

    of: Literal["impressions", "served"] = "impressions"
    every: DurationUs = Field(5_000_000, ge=50_000)
    keep: DurationUs = 7 * 86_400_000_000
