"""What a demo has to show. A figure that is missing does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

STALENESS_GOAL_S: Final = 90.0
PROMOTED_GOAL: Final = 2


def claims(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each claim as `{"name", "found", "holds"}`, judged on the figures of `report.measure`."""
    cycles, parity, poison = measured["cycles"], measured["parity"], measured["poison"]
    p95, serving = measured["staleness_s"]["p95"], measured["serving"]
    events, rollback_ms = measured["events"], measured["rollback_ms"]
    rejected = bool(poison and poison["rejected"])
    found = [
        (
            f"at least {PROMOTED_GOAL} cycles promoted",
            f"{cycles['promoted']} of {cycles['run']}",
            cycles["promoted"] >= PROMOTED_GOAL,
        ),
        ("poisoned window rejected", _poison(poison), rejected),
        (
            "served rows equal the event log and Feast's history, bit for bit",
            _parity(parity),
            parity["rows"] > 0 and parity["mismatches"] == 0 and parity["history"] == "feast",
        ),
        ("no event lost", f"{events['lost']} of {events['appended']}", events["lost"] == 0),
        (
            "no scoring error",
            f"{serving['errors']} of {serving['requests']}",
            serving["requests"] > 0 and serving["errors"] == 0,
        ),
        (
            f"staleness p95 at most {STALENESS_GOAL_S:.0f} s",
            "none" if p95 is None else f"{p95:.1f} s",
            p95 is not None and p95 <= STALENESS_GOAL_S,
        ),
        (
            "rolled back and forward",
            "never" if rollback_ms is None else f"{rollback_ms:.0f} ms",
            rollback_ms is not None,
        ),
    ]
    return [{"name": name, "found": text, "holds": holds} for name, text, holds in found]


def _parity(parity: Mapping[str, Any]) -> str:
    causes = ", ".join(f"{count} {cause}" for cause, count in parity["by_cause"].items())
    told = f" ({causes})" if causes else ""
    return f"{parity['mismatches']} mismatches{told} in {parity['rows']} rows"


def _poison(poison: Mapping[str, Any] | None) -> str:
    if poison is None:
        return "nothing was poisoned"
    where = "rejected" if poison["rejected"] else "not rejected"
    return f"{where}; {poison['learned']} of {poison['impressions']} impressions learned"
