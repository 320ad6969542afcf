"""From an event's append to the first response of a model that learned it, with the learner.

Real processes: `headrace ingest`, `headrace serve`, `headrace learn`, on the line `coupons` with
a champion from simulated history. About 200 events a second come from requests of 24 candidates,
all of which are shown; their clicks follow with a median of 2 s. The benchmark asks the server
itself, a few times a second, and reads from the answers when each version first answered.

What an event waits for by declaration is no delay: a click's label is known when the click is
appended, a silent impression's `provisional_after` later; both clocks start then. Afterwards
clicks are sent for a while for what was not clicked: those ticks must not be learned, and those
after them soon are.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import yaml
from numpy.typing import NDArray

from bench._learned import Found
from bench._measure import SEED, at_least, at_most, equality
from bench._process import cpu_of_tree, free_ports
from bench._traffic import Traffic
from headrace import cycle
from headrace.declaration import LineSpec
from headrace.ingest.service import import_history
from headrace.report.freshness import NEVER
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.simulate.world import SimulatorConfig, history
from headrace.stack.services import stack_environ
from headrace.store import Store

TAIL_S: Final = 15.0
START_S: Final = 120.0
SERVICES: Final = ("ingest", "serve", "learn")


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure for 90 s after 40 s of warming up (quick: 12 s after 20, without poison)."""
    warm_s, lasts_s, poison_s = (20.0, 12.0, 0.0) if quick else (40.0, 90.0, 8.0)
    with tempfile.TemporaryDirectory() as folder:
        settings, spec = prepare(Path(folder), history_s=240 if quick else 1200)
        with processes(settings, spec) as started:
            traffic = Traffic(settings, spec)
            traffic.start()
            time.sleep(warm_s)
            began_us, cpu = _now_us(), {name: cpu_of_tree(pid) for name, pid in started.items()}
            time.sleep(lasts_s)
            ended_us = _now_us()
            cpu = {name: cpu_of_tree(pid) - cpu[name] for name, pid in started.items()}
            time.sleep(TAIL_S)  # traffic goes on until what was measured is learned
            poison_us = _now_us() if poison_s else None
            traffic.poison(bool(poison_s))
            time.sleep(poison_s)
            traffic.poison(False)
            time.sleep(3 * TAIL_S if poison_s else 0)
            traffic.stop()
            health = httpx.get(f"{settings.learner_url}/health", trust_env=False).json()
        spell = Spell(began_us, ended_us, poison_us, int(poison_s * 1e6))
        found = Found.read(settings, spec)
        return _told(found, spell, cpu, health, traffic, quick=quick)


@dataclass(frozen=True)
class Spell:
    """Measured are events appended in `[from_us, to_us)`; poison began when, and for how long."""

    from_us: int
    to_us: int
    poison_us: int | None
    lasted_us: int


def prepare(folder: Path, history_s: int) -> tuple[Settings, LineSpec]:
    """A home whose line `coupons` has a champion, and free ports."""
    raw = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text(encoding="utf-8"))
    raw["cadence"] |= {"tick": "500ms", "learn": "500ms"}
    raw["gates"]["data"]["min_rows"] = raw["gates"]["model"]["min_rows"] = 60
    (folder / "lines").mkdir()
    (folder / "lines" / "coupons.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    ports = free_ports(4)
    settings = load_settings(
        {
            "HEADRACE_HOME": str(folder / "home"),
            "HEADRACE_LINES_DIR": str(folder / "lines"),
            "HEADRACE_SERVER_PORT": str(ports[0]),
            "HEADRACE_COLLECTOR_PORT": str(ports[1]),
            "HEADRACE_LEARNER_PORT": str(ports[2]),
            "HEADRACE_GRPC_PORT": str(ports[3]),
        }
    )
    spec = find_line(settings, "coupons")
    Store(settings).apply()
    events = history(spec, SimulatorConfig(seed=SEED, history_s=history_s), _now_us())
    import_history(settings, spec, events, 4_000_000)
    ended = cycle.run(settings, spec, "full", wait_s=0)
    if ended.outcome != "promoted":
        raise RuntimeError(f"no base model: {ended.reasons}")
    return settings, spec


@contextlib.contextmanager
def processes(settings: Settings, spec: LineSpec) -> Iterator[dict[str, int]]:
    """Process ids by verb, once each answers; all are ended by SIGTERM, which must suffice."""
    environ = stack_environ(settings, "bench")
    urls = {
        "ingest": f"{settings.collector_url}/health",
        "serve": f"{settings.server_url}/v2/health/ready",
        "learn": f"{settings.learner_url}/health",
    }
    running: dict[str, subprocess.Popen[bytes]] = {}
    logs = settings.home / "logs"
    logs.mkdir()
    try:
        for name in SERVICES:
            with (logs / f"{name}.log").open("wb") as log:
                command = "from headrace.cli import main; main()"
                running[name] = subprocess.Popen(
                    [sys.executable, "-c", command, name, "--line", spec.line],
                    env=environ, stdout=log, stderr=log,
                )  # fmt: skip
        deadline = time.monotonic() + START_S
        for name, url in urls.items():
            while not _answers(url):
                if time.monotonic() > deadline or running[name].poll() is not None:
                    said = (logs / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} did not start:\n{said}")
                time.sleep(0.25)
        yield {name: process.pid for name, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()
        codes = {name: process.wait(60) for name, process in running.items()}
    if any(codes[name] for name in ("ingest", "learn")):
        raise RuntimeError(f"not all ended in good order: {codes}")


def _told(
    found: Found,
    spell: Spell,
    cpu: dict[str, float],
    health: dict[str, Any],
    traffic: Traffic,
    *,
    quick: bool,
) -> dict[str, Any]:
    """The result: percentiles of both kinds of labels, gates, CPU and errors."""
    inside = (found.known_us >= spell.from_us) & (found.known_us < spell.to_us)
    poisoned = found.touched(spell.poison_us)
    learned = inside & (found.answered_us != NEVER)
    clicks, silent = (
        _percentiles((found.answered_us - found.known_us)[learned & kind] / 1e6)
        for kind in (found.clicked, ~found.clicked)
    )
    lasted_s = (spell.to_us - spell.from_us) / 1e6
    steps = [step for step in found.steps if spell.from_us <= step.ended_us < spell.to_us]
    outcomes = {
        outcome: sum(step.outcome == outcome for step in steps)
        for outcome in ("promoted", "rejected")
    }
    unlearned = int((inside & (found.answered_us == NEVER)).sum())
    rate = inside.sum() / lasted_s
    cores = {f"{name}, cores": seconds / lasted_s for name, seconds in cpu.items()}
    claims = [
        at_most("click appended to first answer that learned it, p50", clicks["p50"], "s", 3),
        at_most("click appended to first answer that learned it, p95", clicks["p95"], "s", 5),
        at_most("silence known to first answer that learned it, p50", silent["p50"], "s", 3),
        at_most("silence known to first answer that learned it, p95", silent["p95"], "s", 5),
        at_least("labels a second", float(rate), "1/s", 50 if quick else 180),
        equality("no request failed", not traffic.errors),
    ]
    if spell.poison_us is not None:
        name = "flipped clicks that some served model learned"
        claims.append(at_most(name, poisoned, "share", 0.1))
        over_us = spell.poison_us + spell.lasted_us
        name = "seconds from the last flipped click sent to a step that was promoted again"
        claims.append(at_most(name, found.recovered_s(over_us), "s", 30))
    return {
        "what": "append of an event whose label is known to the first answer that learned it",
        "seconds": lasted_s,
        "labels_a_s": float(rate),
        "events_sent": traffic.events,
        "clicks": clicks,
        "silent": silent,
        "steps": outcomes,
        "reasons": sorted({reason for step in steps for reason in step.reasons}),
        "quarantined": found.quarantined,
        "labels_unlearned": unlearned,
        "poisoned_labels_learned": poisoned,
        "request_errors": traffic.errors[:5],
        "scoring_ms": _percentiles(np.array(traffic.latencies_ms)),
        "cpu": cores,
        "load_average": os.getloadavg()[0],
        "health": health,
        "claims": claims,
        "table": {
            "heads": ["", "clicks", "silence"],
            "rows": [
                [
                    f"label known to answered, {rank}, s",
                    f"{clicks[rank]:.2f}",
                    f"{silent[rank]:.2f}",
                ]
                for rank in ("p50", "p95", "p99")
            ]
            + [[name, f"{value:.2f}", ""] for name, value in cores.items()]
            + [[f"steps {outcome}", str(count), ""] for outcome, count in outcomes.items()],
        },
    }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{rank}": float(np.percentile(values, rank)) for rank in (50, 95, 99)}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _now_us() -> int:
    return time.time_ns() // 1_000
