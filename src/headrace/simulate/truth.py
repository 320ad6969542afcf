"""What the simulator knows and saw, as parquet parts: the only source for oracle figures.

Below `<line home>/truth/`: `candidates/` (every scored candidate with its true probabilities),
`requests/` (each scoring call with its latency), `sent/` (each event with its acknowledgement),
`summary.json`, and `drills.json` (what an operator or the demo did: poison, rollback).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.atomic import write_json
from headrace.events import TIME

SCHEMAS: Final[dict[str, pa.Schema]] = {
    # position: 0 is the top, -1 was not shown; p_click is null where nothing was shown.
    "candidates": pa.schema(
        [
            pa.field("impression_id", pa.string(), nullable=False),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("position", pa.int64(), nullable=False),
            pa.field("p_item", pa.float64(), nullable=False),
            pa.field("p_click", pa.float64()),
            pa.field("clicked", pa.bool_(), nullable=False),
            pa.field("poisoned", pa.bool_(), nullable=False),
            pa.field("sent_at", TIME, nullable=False),
        ]
    ),
    # status: the HTTP status, 0 where there was no answer at all.
    "requests": pa.schema(
        [
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("started_at", TIME, nullable=False),
            pa.field("latency_ms", pa.float64(), nullable=False),
            pa.field("status", pa.int64(), nullable=False),
            pa.field("version", pa.string()),
            pa.field("staleness_s", pa.float64()),
        ]
    ),
    "sent": pa.schema(
        [
            pa.field("event", pa.string(), nullable=False),
            pa.field("impression_id", pa.string(), nullable=False),
            pa.field("malformed", pa.bool_(), nullable=False),
            pa.field("acknowledged_at", TIME, nullable=False),
        ]
    ),
}


class TruthLog:
    """Collects rows of one run in memory and writes them as parts; safe for two threads."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self._run, self._part = folder, run, 0
        self._lock = threading.Lock()
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        for name in SCHEMAS:
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, table: str, *rows: dict[str, Any]) -> None:
        """Append rows (times as int µs) to one of the tables."""
        with self._lock:
            self._rows[table].extend(rows)

    def flush(self) -> None:
        """Write one part of each table that has new rows (tmp, then rename)."""
        with self._lock:
            rows, self._rows = self._rows, {name: [] for name in SCHEMAS}
            part, self._part = self._part, self._part + 1
        for name, found in rows.items():
            if found:
                target = self.folder / name / f"{self._run}-{part:05d}.parquet"
                draft = target.with_suffix(".tmp")
                pq.write_table(pa.Table.from_pylist(found, schema=SCHEMAS[name]), draft)
                draft.replace(target)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the remaining rows and the summary of the run."""
        self.flush()
        write_json(self.folder / "summary.json", summary)


def read_truth(line_home: Path, table: str) -> pa.Table:
    """All rows of one table in the order written; no rows where nothing was simulated."""
    parts = sorted((line_home / "truth" / table).glob("*.parquet"))
    tables = [pq.read_table(part, schema=SCHEMAS[table]) for part in parts]
    return pa.concat_tables(tables) if tables else SCHEMAS[table].empty_table()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file does not exist."""
    if not path.exists():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded
