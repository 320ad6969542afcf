"""A line over a file of events in a world that turns over every day."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from headrace.declaration import LineSpec

Row = dict[str, Any]
START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 6
ITEMS = "abcdefgh"


def declare(**changes: Any) -> LineSpec:
    declared: dict[str, Any] = {
        "line": "toy",
        "columns": {"item": "string"},
        "source": {
            "kind": "files",
            "impressions": impressions(),
            "label": {"value": "hit", "delay_s": "delay"},
        },
        "label": {"engagement": "hit", "outcome": "explicit", "attribution_window": "1d"},
        "windows": [
            {"name": "n", "key": ["item"], "event": "hit", "aggregate": "count", "window": "6h"},
            {"name": "h", "key": ["item"], "event": "hit", "aggregate": "sum", "window": "6h"},
        ],
        "request_features": [
            {"name": "item_id", "kind": "hash", "of": "item"},
            {"name": "rate", "kind": "ratio", "of": ["h", "n"], "prior": [1, 4]},
        ],
        "model": {
            "family": "ftrl",
            "categorical": ["item_id"],
            "numeric": ["rate"],
            "table_bits": 10,
            "ftrl_alpha": 0.3,
        },
        "gates": {"data": {"min_rows": 10}},
        "cadence": {"incremental": "1h"},
    }
    return LineSpec.model_validate(declared | changes)


def world(rows_a_day: int = 300) -> list[Row]:
    """Items whose rate turns over every day, so that fresher training knows more."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(DAYS * rows_a_day):
        at = START + timedelta(seconds=number * 86_400 / rows_a_day)
        item = int(rng.integers(len(ITEMS)))
        rate = 0.85 if (item + number // rows_a_day) % 2 else 0.1
        rows.append(
            {
                "id": f"i{number}",
                "at": at.isoformat(),
                "item": ITEMS[item],
                "hit": int(rng.random() < rate),
                "delay": int(rng.integers(60, 7200)),
            }
        )
    return rows


def save(folder: Path, rows: list[Row]) -> Path:
    with (folder / "toy.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def without(rows: list[Row], keep: Callable[[datetime], bool]) -> list[Row]:
    """The same rows, labels turned over where they became known outside `keep`."""
    changed = []
    for row in rows:
        known = datetime.fromisoformat(row["at"]) + timedelta(seconds=row["delay"])
        changed.append(row if keep(known) else row | {"hit": 1 - row["hit"]})
    return changed


def impressions() -> dict[str, Any]:
    return {
        "path": "toy.csv",
        "id": "id",
        "time": {"expression": "at"},
        "columns": {"item": "item"},
    }
