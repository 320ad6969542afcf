"""What an hour of the stack came to, counted from what was seen of it."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime

from bench._sustained import Observed, figures, result, usage
from headrace import records

T0 = 1_800_000_000


def run(due_s: int, started_s: int | None) -> dict[str, str | None]:
    def text(at_s: int) -> str:
        return datetime.fromtimestamp(T0 + at_s, UTC).isoformat()

    return {"run_after": text(due_s), "start_date": None if started_s is None else text(started_s)}


def cycle(at_s: int, outcome: records.Outcome, version: str | None = None) -> records.Cycle:
    began = records.started(f"run-{(T0 + at_s) * 1_000_000}", "incremental")
    return replace(began, outcome=outcome, version=version)


def test_cycles_are_counted_and_waits_run_from_when_a_run_was_due():
    seen = Observed(T0 * 1_000_000, (T0 + 100) * 1_000_000)
    seen.runs = {"a": run(0, 1), "b": run(30, 65), "c": run(60, None)}
    seen.staleness_s = [float(n) for n in range(101)]
    seen.cpu_s, seen.memory_mib = {"serve": [10.0, 60.0]}, {"serve": [100.0, 120.0]}
    cycles = [
        cycle(-5, "promoted", "v000001"),  # before the hour
        cycle(3, "promoted", "v000002"),
        cycle(67, "rejected", "v000003"),
        cycle(70, "failed"),
    ]
    served = [("v000001", T0 * 1_000_000), ("v000002", (T0 + 12) * 1_000_000)]
    found = figures(seen, cycles, served, cadence_s=30)
    assert found["cycles"] == {
        "run": 3, "promoted": 1, "rejected": 1, "failed": 1, "late": 1, "runs": 3
    }  # fmt: skip
    assert found["trigger_to_served_s"]["p50"] == 12
    assert found["staleness_s"] == {"p50": 50, "p95": 95, "p99": 99}
    assert found["services"] == {"serve": {"cpu_share": 0.5, "memory_mib": 120.0}}
    told = result(60, found)
    assert [claim["holds"] for claim in told["claims"]] == [False, True, False]
    assert ["serve: cores, MiB", "0.50, 120"] in told["table"]["rows"]


def test_the_use_of_a_process_counts_its_own():
    cpu_s, mib = usage(os.getpid())
    assert cpu_s > 0
    assert mib > 10
    assert usage(2**22 + 1) == (0.0, 0.0)
