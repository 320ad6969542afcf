"""Where every row of the files went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SourceCounts:
    """Counts of one reading; every row of the impressions' file is in exactly one of them.

    Without `explode`, `rows = excluded + malformed + impressions`. With it, each row that is not
    excluded, unparsable or `empty` (no piece) becomes one or more `records`, and
    `records = malformed - unparsable + impressions` (plus `excluded`, where `where` reads a
    piece). `malformed`: unparsable, no id, or an unreadable time; the first few are shown.

    Of the impressions, `unlabelled` have no label in their row and `label_time_missing` have
    one without a time (so it never becomes known); `silent` are zeros that no event reports.
    `early_labels` were known before their exposure and were moved up to it. `duplicates` are
    impressions whose id stood in an earlier row, `unsorted` those that stand below a later one;
    `unmatched` are engagements whose impression the file lacks; `unreadable_values` are
    values that are not of their column's type and count as missing, by column.
    `engagement_file` accounts for the second file: `rows = excluded + malformed + records`,
    where `records = engagements + unlabelled + silent`.
    """

    rows: int = 0
    excluded: int = 0
    empty: int = 0
    records: int = 0
    unparsable: int = 0
    malformed: int = 0
    impressions: int = 0
    engagements: int = 0
    unlabelled: int = 0
    label_time_missing: int = 0
    silent: int = 0
    early_labels: int = 0
    duplicates: int = 0
    unsorted: int = 0
    unmatched: int = 0
    unreadable_values: dict[str, int] = field(default_factory=dict)
    engagement_file: dict[str, int] = field(default_factory=dict)
    malformed_first: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return asdict(self)
