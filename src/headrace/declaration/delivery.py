"""How long a chain of deltas may grow, and how long versions are kept."""

from __future__ import annotations

from pydantic import Field

from headrace.declaration.base import Declared, DurationUs


class DeliverySpec(Declared):
    """When a base is written behind a chain of deltas, and which versions keep their files.

    A new base is due after `compact_after` deltas, or when they take more than `compact_share`
    of the bytes of the base. `keep_versions`: champions that can be rolled back to, newest
    first; `keep_rejected`: age up to which versions stay that never were champion; `keep_steps`:
    age up to which manifests and promotions of a learner stay whose files are gone.
    """

    compact_after: int = Field(20, ge=1, le=80)
    compact_share: float = Field(1.0, gt=0)
    keep_versions: int = Field(50, ge=2)
    keep_rejected: DurationUs = 7 * 86_400_000_000
    keep_steps: DurationUs = 86_400_000_000
