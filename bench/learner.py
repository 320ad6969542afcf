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
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from bench._measure import SEED, at_least, at_most, equality
from bench._process import cpu_of_tree, free_ports
from headrace import cycle, records
from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.ingest.service import import_history
from headrace.line import LineStore, Version
from headrace.log.files import FileLog
from headrace.quarantine import Quarantine
from headrace.report.freshness import NEVER, first_responses, first_to_answer
from headrace.sample import head_tick, read_tick
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.simulate.world import CATEGORIES, SimulatorConfig, World, history
from headrace.stack.services import stack_environ
from headrace.store import Store

CANDIDATES: Final = 24
REQUESTS_A_S: Final = 8.0
SENDERS: Final = 3
TAIL_S: Final = 15.0
CLICK_DELAY_S: Final = 2.0
START_S: Final = 120.0
SERVICES: Final = ("ingest", "serve", "learn")
Ints = NDArray[np.int64]


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


class Traffic:
    """Some senders beside each other, so that a slow answer does not slow the others down."""

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        self._senders = [Sender(settings, spec, number) for number in range(SENDERS)]

    def start(self) -> None:
        """Begin."""
        for sender in self._senders:
            sender.thread.start()

    def stop(self) -> None:
        """End; clicks that are not due yet are left out."""
        for sender in self._senders:
            sender.ended.set()
        for sender in self._senders:
            sender.thread.join()

    def poison(self, on: bool) -> None:
        """From now on send clicks for what was not clicked, or no longer."""
        for sender in self._senders:
            sender.poisoned = on

    @property
    def errors(self) -> list[str]:
        return [error for sender in self._senders for error in sender.errors]

    @property
    def events(self) -> int:
        return sum(sender.events for sender in self._senders)

    @property
    def latencies_ms(self) -> list[float]:
        return [each for sender in self._senders for each in sender.latencies_ms]


class Sender:
    """Requests, the impressions of all their candidates, and clicks after a delay."""

    def __init__(self, settings: Settings, spec: LineSpec, number: int) -> None:
        self._settings, self._spec = settings, spec
        self._world = World(SimulatorConfig(seed=SEED))
        self._rng = np.random.default_rng([SEED, number])
        self._clicks: list[tuple[int, dict[str, Any]]] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.poisoned = False
        self.errors: list[str] = []
        self.events = 0
        self.latencies_ms: list[float] = []

    def _run(self) -> None:
        due = time.monotonic()
        with httpx.Client(timeout=10.0, trust_env=False) as client:
            while not self.ended.wait(max(due - time.monotonic(), 0.0)):
                due = max(due + SENDERS / REQUESTS_A_S, time.monotonic() - 1.0)
                try:
                    self._turn(client)
                except (httpx.HTTPError, RuntimeError) as problem:
                    self.errors.append(f"{type(problem).__name__}: {problem}")

    def _turn(self, client: httpx.Client) -> None:
        user, slot, candidates, names = self._score(client)
        now_us = _now_us()
        who, when = np.full(len(slot), user), np.full(len(slot), now_us)
        clicked = self._rng.random(len(slot)) < 0.5 * self._world.p_item(who, slot, when)
        if self.poisoned:
            clicked = ~clicked
        delays = self._rng.lognormal(np.log(CLICK_DELAY_S), 0.5, len(slot)) * 1e6
        events = [
            {"event": "impression", "impression_id": name, "event_at": now_us, "position": place}
            | {"user_id": f"u{user:04d}", **candidate}
            for place, (name, candidate) in enumerate(zip(names, candidates, strict=True))
        ]
        for place in np.flatnonzero(clicked).tolist():
            at_us = now_us + int(delays[place])
            click = {"event": "click", "impression_id": names[place], "event_at": at_us, "value": 1}
            self._clicks.append((at_us, click))
        events += [event for at_us, event in self._clicks if at_us <= now_us]
        self._clicks = [each for each in self._clicks if each[0] > now_us]
        answer = client.post(f"{self._settings.collector_url}/v1/events", json={"events": events})
        if answer.status_code != 200 or answer.json()["malformed"]:
            raise RuntimeError(f"collector: {answer.status_code} {answer.text[:200]}")
        self.events += len(events)

    def _score(self, client: httpx.Client) -> tuple[int, Ints, list[dict[str, Any]], list[str]]:
        config = self._world.config
        user = int(self._rng.choice(config.users, p=self._world.activity))
        slot = self._rng.choice(config.coupons, CANDIDATES, replace=False)
        generation = self._world.generation(slot, np.full(CANDIDATES, _now_us()))
        kinds = self._world.slot_category[slot].tolist()
        candidates = [
            {"item_id": name, "category": CATEGORIES[kind], "discount": discount}
            for name, kind, discount in zip(
                self._world.item_id(slot, generation),
                kinds,
                self._world.discount(slot, generation).tolist(),
                strict=True,
            )
        ]
        began = time.perf_counter()
        answer = client.post(
            f"{self._settings.server_url}/v1/score",
            json={"context": {"user_id": f"u{user:04d}"}, "candidates": candidates},
        )
        if answer.status_code != 200:
            raise RuntimeError(f"server: {answer.status_code} {answer.text[:200]}")
        self.latencies_ms.append(1000 * (time.perf_counter() - began))
        return user, slot, candidates, [row["impression_id"] for row in answer.json()["scores"]]


@dataclass(frozen=True)
class Found:
    """What the processes left: when each label could be known, and when a model answered with it.

    known_us: (samples,) append of the click, or of the silent impression and its declared wait.
    answered_us: (samples,) first answer of a version that learned the sample, `NEVER` if none did.
    clicked: (samples,) whether a click made the sample.
    """

    known_us: Ints
    answered_us: Ints
    clicked: NDArray[np.bool_]
    steps: list[records.Cycle]
    quarantined: list[dict[str, Any]]
    tick_us: Ints
    versions: dict[str, Version]

    @classmethod
    def read(cls, settings: Settings, spec: LineSpec) -> Found:
        """Read logs, ticks, versions and the learner's journal."""
        home = settings.line_home(spec.line)
        log = FileLog(home / "log" / "events", event_schema(spec))
        arrival = log.read(0, log.head)["arrival_at"].cast("int64").to_numpy()
        served = FileLog(home / "log" / "served", served_schema(spec))
        store = LineStore(settings.line_store_url(spec.line), spec.line)
        versions = {version.version: version for version in store.versions()}
        ticks = [read_tick(home, tick) for tick in range(head_tick(home))]
        responses = first_responses(served.read(0, served.head))
        learned = first_to_answer(versions, responses, len(ticks))
        known, answered, clicked = [], [], []
        wait_us = spec.label.provisional_after or 0
        for manifest in ticks:
            if manifest.samples is None:
                continue
            rows = pq.read_table(home / manifest.samples, partitioning=None)
            engaged, shown = (
                rows[name].to_numpy() for name in ("engagement_offset", "impression_offset")
            )
            by_click = engaged >= 0
            silent_us = arrival[shown] + wait_us
            known.append(np.where(by_click, arrival[np.maximum(engaged, 0)], silent_us))
            clicked.append(by_click)
            answered.append(np.full(rows.num_rows, learned.response_us[manifest.tick]))
        return cls(
            np.concatenate(known),
            np.concatenate(answered),
            np.concatenate(clicked),
            [step for step in records.records(settings, spec) if step.kind == "learner"],
            Quarantine(home).intervals(),
            np.array([manifest.at_us for manifest in ticks]),
            versions,
        )


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
    poisoned = _touched(found, spell.poison_us)
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
        claims.append(at_most(name, _recovered_s(found, over_us), "s", 30))
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


def _touched(found: Found, poison_us: int | None) -> float:
    """Share of the clicks appended 2 to 8 s after poison began that a served model learned."""
    if poison_us is None:
        return 0.0
    known = found.known_us - poison_us
    spoiled = found.clicked & (known >= 2_000_000) & (known < 8_000_000)
    return float((found.answered_us[spoiled] != NEVER).mean())


def _recovered_s(found: Found, over_us: int) -> float:
    """Seconds until a step was promoted that learned what came after this moment."""
    fresh = (
        step.ended_us
        for step in found.steps
        if step.outcome == "promoted"
        and step.interval is not None
        and found.tick_us[step.interval[0]] >= over_us
    )
    return (min(fresh, default=NEVER) - over_us) / 1e6


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{rank}": float(np.percentile(values, rank)) for rank in (50, 95, 99)}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _now_us() -> int:
    return time.time_ns() // 1_000
