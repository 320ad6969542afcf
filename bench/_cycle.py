"""A cycle over ten thousand new samples, from where they wait to the model in use, step by step.

`python -m bench._cycle --turns 5` starts a stack of Airflow below `out/cycle`, whose line gets
events in bursts, as a campaign of sixty requests a second would send them in half a minute. The
asset of its samples starts each cycle; a follower as the scoring server has one takes the model
in use. Writes `out/bench/cycle.json`. It is no part of `make bench`: it owns the default ports.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from bench._drilled import us
from bench._measure import at_most
from headrace import records, stack
from headrace.declaration import LineSpec
from headrace.ingest.service import import_history
from headrace.line import LineStore
from headrace.sample import ticks
from headrace.serving.swap import Follower
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.simulate.world import SimulatorConfig, history
from headrace.store import Store

LINE: Final = "coupons"
SAMPLES: Final = 10_000
BASE: Final = 20_000
JUDGING: Final = 1_500
"""Impressions that come after a window and judge what learned it."""
TICK_US: Final = 1_000_000
GOAL_S: Final = 25.0
PATIENCE_S: Final = 240.0
STEPS: Final = ("check-data", "train", "evaluate", "promote")
_STAMP: Final = re.compile(r"^(\d\d:\d\d:\d\d\.\d+) - INFO - (Executing task|Task) \S*'([a-z-]+)'")


@dataclass
class Bursts:
    """The campaign's events, taken in a piece at a time."""

    settings: Settings
    spec: LineSpec
    events: pa.Table
    taken: int = 0

    def take(self, impressions: int) -> None:
        """Take in the next so many impressions, and what arrived between them."""
        shown = pc.equal(self.events["event"], "impression").to_numpy(zero_copy_only=False)
        last = self.taken + int(np.flatnonzero(shown[self.taken :])[impressions])
        arrival = self.events["arrival_at"].cast(pa.int64()).to_numpy()
        stop = int(np.searchsorted(arrival, arrival[last], "right"))
        piece = self.events.slice(self.taken, stop - self.taken)
        import_history(self.settings, self.spec, piece, TICK_US)
        self.taken = stop


def airflow_alone(settings: Settings, line: str) -> tuple[stack.Service, ...]:
    """Nothing scores or collects: the events are brought."""
    every = stack.services(settings, line)
    return tuple(one for one in every if one.name.startswith("airflow"))


def prepared(home: Path) -> Settings:
    """A home of the line, which starts a cycle when `SAMPLES` wait and not by the clock."""
    shutil.rmtree(home, ignore_errors=True)
    declared = yaml.safe_load((PROJECT / "lines" / f"{LINE}.yaml").read_text(encoding="utf-8"))
    declared["cadence"] |= {"incremental": "6h", "on_samples": SAMPLES}
    lines = home / "lines_dir"
    lines.mkdir(parents=True)
    (lines / f"{LINE}.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    return replace(load_settings(), home=home, lines_dir=lines)


def measure(settings: Settings, turns: int) -> list[dict[str, float]]:
    """Seconds of each part of so many cycles, and the samples that they learned."""
    spec = find_line(settings, LINE)
    Store(settings).apply()
    config = SimulatorConfig(seed=spec.seed, requests_per_s=60.0, history_s=60 + 45 * turns + 70)
    bursts = Bursts(settings, spec, history(spec, config, time.time_ns() // 1_000))
    store = LineStore(settings.line_store_url(LINE), LINE)
    follower = Follower(spec, store)
    bursts.take(BASE)
    told = []
    with (
        stack.running(settings, LINE, service_list=airflow_alone),
        stack.AirflowClient(settings) as airflow,
    ):
        dags = {f"{verb}_{LINE}" for verb in ("full_train", "incremental_train")}
        airflow.wait_for_dags(dags)
        airflow.wait(f"full_train_{LINE}", airflow.trigger(f"full_train_{LINE}"))
        follower.start(lambda: None)
        try:
            for turn in range(turns):
                told.append(_turn(settings, spec, bursts, follower, airflow))
                stack.write_line(f"{turn + 1} of {turns}: {told[-1]['total']:.1f} s")
        finally:
            follower.stop()
    return told


def _turn(
    settings: Settings,
    spec: LineSpec,
    bursts: Bursts,
    follower: Follower,
    airflow: stack.AirflowClient,
) -> dict[str, float]:
    home = settings.line_home(LINE)
    _until(lambda: follower.ready, "a champion in use")
    before = follower.current().version
    checked, dag = _checked(home), f"incremental_train_{LINE}"
    bursts.take(SAMPLES)
    _until(lambda: _checked(home) > checked, "the data gate")
    bursts.take(JUDGING)
    _until(lambda: follower.current().version.version != before.version, "a new champion")
    in_use_us = time.time_ns() // 1_000
    after = follower.current()
    (cycle,) = (c for c in records.records(settings, spec) if c.version == after.version.version)
    runs = [run for run in airflow.runs(dag) if run["start_date"]]
    began_us = max(us(r["start_date"]) for r in runs if us(r["start_date"]) <= cycle.started_us)
    waited_us = _waited_us(home, before.to_tick)
    spans = _steps(settings.home / "logs" / f"kfp-{cycle.run}.log", cycle.started_us)
    promoted_us = after.champion.at_us
    moments = {
        "samples wait, the asset is told, the run begins": began_us - waited_us,
        "the run plans and starts its pipeline": spans["check-data"][0] - began_us,
        **{step: end - start for step, (start, end) in spans.items() if step != "promote"},
        "promote": promoted_us - spans["promote"][0],
        "the model is in use": in_use_us - promoted_us,
        "total": in_use_us - waited_us,
    }
    rows = sum(
        t.counts.get("samples", 0) for t in ticks(home, before.to_tick, after.version.to_tick)
    )
    return {name: value / 1e6 for name, value in moments.items()} | {"samples": rows}


def _waited_us(home: Path, from_tick: int) -> int:
    """When the tick was committed with which `SAMPLES` waited behind that one."""
    rows = 0
    for tick in ticks(home, from_tick):
        rows += tick.counts.get("samples", 0)
        if rows >= SAMPLES:
            return (home / "ticks" / f"{tick.tick:08d}.json").stat().st_mtime_ns // 1_000
    raise RuntimeError(f"only {rows} samples wait")


def _checked(home: Path) -> int:
    """When the data gate last had an answer."""
    return max((one.stat().st_mtime_ns for one in (home / "gates").glob("data-*")), default=0)


def _steps(log: Path, started_us: int) -> dict[str, tuple[int, int]]:
    """Start and end of each step in us, as the log tells them; the last one may not have ended."""
    day, found = datetime.fromtimestamp(started_us / 1e6).date(), dict[str, list[int]]()
    for line in log.read_text(encoding="utf-8").splitlines():
        told = _STAMP.match(line)
        if told is not None and not line.endswith("outputs:"):
            at = datetime.combine(day, datetime.strptime(told[1], "%H:%M:%S.%f").time())
            found.setdefault(told[3], []).append(int(at.timestamp() * 1e6))
    return {step: (found[step][0], found[step][-1]) for step in STEPS}


def _until(found: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > ends:
            raise RuntimeError(f"waited {PATIENCE_S:g} s in vain for {what}")
        time.sleep(0.02)


def result(told: list[dict[str, float]]) -> dict[str, Any]:
    """As the other benchmarks write theirs."""
    medians = {name: statistics.median(turn[name] for turn in told) for name in told[0]}
    rows = [[name, f"{value:.1f} s"] for name, value in medians.items() if name != "samples"]
    least = min(turn["samples"] for turn in told)
    return {
        "what": f"a cycle over {least:,.0f} new samples and more, medians of {len(told)}",
        "turns": told,
        "claims": [
            at_most("samples wait to model in use, median", medians["total"], "s", GOAL_S),
        ],
        "table": {"heads": ["", ""], "rows": rows},
    }


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench._cycle", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    told = result(measure(prepared(PROJECT / "out" / "cycle"), parser.parse_args().turns))
    path = PROJECT / "out" / "bench" / "cycle.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    for name, value in told["table"]["rows"]:
        stack.write_line(f"{name}: {value}")
    stack.write_line(str(path))


if __name__ == "__main__":
    main()
