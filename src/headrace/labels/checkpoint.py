"""Open impressions and early engagements as tables, and back.

Pure. Equal states give equal tables.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from headrace.labels.attribution import FIELDS, Attribution, Early, as_strings, as_us

_EARLY_SCHEMA: Final = pa.schema(
    [
        ("offset", pa.int64()),
        ("impression_id", pa.string()),
        ("event_at", pa.int64()),
        ("arrival_at", pa.int64()),
        ("value", pa.int64()),
    ]
)


def tables_of(join: Attribution) -> dict[str, pa.Table]:
    """What the join holds, as `impressions` (changing fields as `__<field>`) and `early`."""
    shelf = join.impressions
    alive = np.flatnonzero(shelf["alive"])
    impressions = shelf.take(alive)
    for name in ("offset", *FIELDS):
        impressions = impressions.append_column(f"__{name}", pa.array(shelf[name][alive]))
    early = [{"offset": offset, **row._asdict()} for offset, row in join.early.items()]
    return {
        "impressions": impressions.combine_chunks(),
        "early": pa.Table.from_pylist(early, schema=_EARLY_SCHEMA),
    }


def restore(join: Attribution, tables: dict[str, pa.Table]) -> None:
    """Put the rows of `tables_of` into a new join."""
    rows, shelf = tables["impressions"], join.impressions
    offsets = as_us(rows, "__offset")
    fields = {name: rows[f"__{name}"].to_numpy() for name in FIELDS}
    shelf.add(rows.select(shelf.schema.names).cast(shelf.schema), offsets, fields)
    shelf.index = dict(zip(as_strings(rows, "impression_id"), offsets.tolist(), strict=True))
    for row in tables["early"].to_pylist():
        offset = row.pop("offset")
        join.hold(offset, Early(**row))
