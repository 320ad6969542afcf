"""What sets two versions apart."""

from __future__ import annotations

from typing import Any

from headrace.line.store import LineStore
from headrace.model import delta


def compare(store: LineStore, left: str, right: str) -> dict[str, Any]:
    """Metrics, evidence, verdict, interval and size of two versions, and the rows that differ.

    `arrays`: by name, rows whose bits differ and all rows (1 for an array that is no table).
    Raises `InputError` for an unknown or pruned version.
    """
    (a, before), (b, after) = store.load(left), store.load(right)
    changes = delta.diff(before, after)
    arrays: dict[str, Any] = {}
    for key, array in changes.items():
        kind, _, name = key.partition("/")
        if kind == "values":
            continue
        all_rows = len(after[name]) if name in after and after[name].ndim == 2 else 1
        arrays[name] = {"rows": len(array) if kind == "rows" else all_rows, "of": all_rows}
    return {
        "versions": [a.version, b.version],
        "same_state": not changes,
        "arrays": arrays,
        "fields": {
            field: [getattr(a, field), getattr(b, field)]
            for field in ("parent", "kind", "from_tick", "to_tick", "excluded", "rows", "size",
                          "watermark_us", "code", "feature_service", "created_at")
        },
        "metrics": _side_by_side(a.metrics, b.metrics),
        "evidence": _side_by_side(store.evidence(left), store.evidence(right)),
        "verdicts": [store.verdict(left), store.verdict(right)],
    }  # fmt: skip


def _side_by_side(left: dict[str, Any] | None, right: dict[str, Any] | None) -> dict[str, Any]:
    left, right = left or {}, right or {}
    return {name: [left.get(name), right.get(name)] for name in sorted(left | right)}
