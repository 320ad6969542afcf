"""An hour of `make up` at the default cadence: what the cycles came to, how stale, at what cost.

`python -m bench._sustained --minutes 60 --drills` starts a stack of its own below `out/sustained`
from simulated history, with traffic, which each ten minutes is poisoned for 20 s, and writes
`out/bench/sustained.json`. It is no part of `make bench`, which takes less than an hour. The ports
are those of the settings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench._drilled import LASTED_S, Drilled, Drilling, us, what_became
from bench._drilled import minutes as chain
from bench._measure import at_least, at_most, equality
from bench._process import TICKS_A_S
from headrace import records, stack
from headrace.demo.bootstrap import Bootstrap
from headrace.line import LineStore
from headrace.parity import check
from headrace.report.measure import read_artifacts
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.simulate.poison import PoisonSwitch
from headrace.stack import supervisor

LINE: Final = "coupons"
DAG: Final = f"incremental_train_{LINE}"
SAMPLE_S: Final = 1.0
RUNS_S: Final = 60.0
GOAL_S: Final = 25.0
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Observed:
    """What was seen: staleness at each look in s, Airflow's runs by id, and each service's use:
    CPU seconds since its start, those of its ended children included, and resident MiB.
    """

    began_us: int
    ended_us: int = 0
    staleness_s: list[float] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    memory_mib: dict[str, list[float]] = field(default_factory=dict)
    drills: list[dict[str, Any]] = field(default_factory=list)


def observe(settings: Settings, minutes: float, drills: bool) -> Observed:
    """Run the stack under traffic for so long and watch it."""
    drilling = Drilling(PoisonSwitch(settings, LINE))
    spec = find_line(settings, LINE)
    service_list = Bootstrap(spec, stack.write_line, traffic=True)
    with stack.running(settings, LINE, service_list=service_list) as started:
        store = LineStore(settings.line_store_url(LINE), LINE)
        seen = Observed(time.time_ns() // 1_000)
        with stack.AirflowClient(settings) as airflow:
            airflow.wait_for_dags({DAG})
            ends, asked = time.monotonic() + minutes * 60, 0.0
            while time.monotonic() < ends:
                if drills:
                    drilling.step()
                champion = store.champion()
                if champion is not None:
                    watermark_us = store.get(champion.version).watermark_us
                    seen.staleness_s.append(time.time() - watermark_us / 1e6)
                if time.monotonic() - asked >= RUNS_S:
                    asked = time.monotonic()
                    _look(seen, airflow, started.endpoint, started.services)
                time.sleep(SAMPLE_S)
            drilling.end()
            _look(seen, airflow, started.endpoint, started.services)
        seen.ended_us = time.time_ns() // 1_000
        seen.drills = drilling.done
    return seen


def figures(
    seen: Observed,
    cycles: Sequence[records.Cycle],
    served: Sequence[tuple[str, int]],
    cadence_s: float,
) -> dict[str, Any]:
    """What an hour came to, of its cycles' records and of `served`: champions and when they began
    to be, in us. A run is late that began more than a cadence after it was due.
    """
    within = [c for c in cycles if c.kind == "incremental" and c.started_us >= seen.began_us]
    count = {name: sum(c.outcome == name for c in within) for name in ("promoted", "rejected")}
    count |= {"run": len(within), "failed": sum(c.outcome == "failed" for c in within)}
    due = {c.version: _due_us(seen.runs, c.started_us) for c in within if c.outcome == "promoted"}
    waits = [(at_us - us) / 1e6 for name, at_us in served if (us := due.get(name)) is not None]
    late = [run for run in seen.runs.values() if _late_s(run) > cadence_s]
    return {
        "cycles": count | {"late": len(late), "runs": len(seen.runs)},
        "staleness_s": _quantiles(seen.staleness_s, (50, 95, 99)),
        "trigger_to_served_s": _quantiles(waits, (50, 95)),
        "services": {
            name: {
                "cpu_share": (used[-1] - used[0]) / ((seen.ended_us - seen.began_us) / 1e6),
                "memory_mib": max(seen.memory_mib[name]),
            }
            for name, used in seen.cpu_s.items()
        },
    }


def result(
    minutes: float, found: Mapping[str, Any], drilled: Sequence[Drilled] = ()
) -> dict[str, Any]:
    """As the other benchmarks write theirs."""
    cycles, stale, waits = found["cycles"], found["staleness_s"], found["trigger_to_served_s"]
    rows = [
        ["cycles, promoted, rejected, failed",
         ", ".join(str(cycles[name]) for name in ("run", "promoted", "rejected", "failed"))],
        ["runs of Airflow, late", f"{cycles['runs']}, {cycles['late']}"],
        ["staleness p50, p95, p99", ", ".join(f"{stale[f'p{q}']:.1f}" for q in (50, 95, 99))],
        *(drill.row() for drill in drilled),
        *([f"{name}: cores, MiB", f"{one['cpu_share']:.2f}, {one['memory_mib']:.0f}"]
          for name, one in found["services"].items()),
    ]  # fmt: skip
    objective = []
    if "chain" in found:
        told = found["chain"]
        bad = len(told["bad"])
        rows.append(["minutes since the first promotion, of which some answer was old or failed",
                     f"{told['minutes']}, {bad}"])  # fmt: skip
        rows.append(["rows recomputed, mismatches", f"{told['rows']:,}, {told['mismatches']}"])
        share = 1 - bad / max(told["minutes"], 1)
        objective = [
            at_least("minutes in which the chain kept its objective", share, "share", 0.999),
            equality("rows served as learned", told["mismatches"] == 0),
        ]
    what = f"{minutes:g} minutes of `make up` at the default cadence"
    if drilled:
        what += f", poisoned {len(drilled)} times for {LASTED_S:.0f} s"
    return {
        "what": what,
        "peers": {},
        **found,
        "table": {"heads": ["figure", "value"], "rows": rows},
        "claims": [
            equality("no cycle failed", cycles["failed"] == 0),
            *objective,
            at_most("trigger to served, median", waits["p50"], "s", GOAL_S),
            at_most("runs that began late", cycles["late"] / max(1, cycles["runs"]), "share", 0.05),
        ],
    }


def usage(root: int) -> tuple[float, float]:
    """CPU seconds of a process with its ended and living descendants, and their resident MiB."""
    parents: dict[int, list[int]] = {}
    stats = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        stats[int(entry.name)] = fields
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
    cpu, pages, todo = 0.0, 0, [root]
    while todo:
        pid = todo.pop()
        if pid in stats:
            cpu += sum(int(ticks) for ticks in stats[pid][11:15]) / TICKS_A_S
            pages += int(stats[pid][21])
            todo += parents.get(pid, [])
    return cpu, pages * PAGE / 2**20


def _look(
    seen: Observed, airflow: stack.AirflowClient, endpoint: str, services: Sequence[str]
) -> None:
    for run in airflow.runs(DAG, limit=100):
        if us(run["run_after"]) >= seen.began_us:
            seen.runs[run["dag_run_id"]] = run
    for name, pid in supervisor.pids(endpoint, services).items():
        cpu_s, mib = usage(pid)
        seen.cpu_s.setdefault(name, []).append(cpu_s)
        seen.memory_mib.setdefault(name, []).append(mib)


def _due_us(runs: Mapping[str, Mapping[str, Any]], cycle_us: int) -> int | None:
    """When the run was due in which a cycle began: the newest that had begun by then."""
    begun = [
        run for run in runs.values() if run["start_date"] and us(run["start_date"]) <= cycle_us
    ]
    newest = max(begun, key=lambda run: us(run["start_date"]), default=None)
    return None if newest is None else us(newest["run_after"])


def _late_s(run: Mapping[str, Any]) -> float:
    if not run["start_date"]:
        return 0.0
    return (us(run["start_date"]) - us(run["run_after"])) / 1e6


def _quantiles(values: Sequence[float], which: Sequence[int]) -> dict[str, float]:
    if not values:
        return {f"p{q}": float("nan") for q in which}
    return {f"p{q}": float(np.percentile(values, q)) for q in which}


def main() -> None:
    """Observe, and write what was seen."""
    parser = argparse.ArgumentParser(prog="python -m bench._sustained", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--drills", action="store_true", help="poison the traffic now and then")
    asked = parser.parse_args()
    minutes = asked.minutes
    settings = replace(load_settings(), home=PROJECT / "out" / "sustained" / "stack")
    if not stack.status(settings)["running"]:
        shutil.rmtree(settings.home, ignore_errors=True)
    spec = find_line(settings, LINE)
    seen = observe(settings, minutes, asked.drills)
    store = LineStore(settings.line_store_url(LINE), LINE)
    served = [(c.version, c.at_us) for c in store.history() if c.action == "promote"]
    cycles = records.records(settings, spec)
    found = figures(seen, cycles, served, spec.cadence.incremental / 1e6)
    artifacts = read_artifacts(settings, spec)
    first_us = min((at_us for _, at_us in served if at_us > seen.began_us), default=seen.began_us)
    found["chain"] = chain(artifacts.requests, first_us, seen.ended_us)
    parity = check(settings, spec, shown=5)
    found["chain"] |= {"rows": parity.rows, "mismatches": parity.mismatches}
    told = result(minutes, found, what_became(artifacts, seen.drills))
    path = PROJECT / "out" / "bench" / "sustained.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    for name, value in told["table"]["rows"]:
        stack.write_line(f"{name}: {value}")
    for claim in told["claims"]:
        stack.write_line(f"{claim['name']}: {claim['value']:.3g} (goal {claim['goal']})")
    stack.write_line(str(path))


if __name__ == "__main__":
    main()
