"""How often a line's flows run."""

from __future__ import annotations

from pydantic import Field

from headrace.declaration.base import Declared, DurationUs


class CadenceSpec(Declared):
    """`tick`: micro-batch of features and samples; `incremental`, `full`: the two DAGs.

    `on_samples`: so many new samples start an incremental cycle before its time is up.
    `learn`: how often a resident learner takes a step; `race`: how often the conductor of the
    line's races looks. With each, the stack starts one.
    """

    tick: DurationUs = 1_000_000
    incremental: DurationUs = 30_000_000
    on_samples: int | None = Field(None, ge=1)
    full: DurationUs = 86_400_000_000
    learn: DurationUs | None = None
    race: DurationUs | None = None
