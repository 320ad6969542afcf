"""`make demo`: the whole loop once on this machine, with drills, and a report of what it did.

A base model from simulated history, then the real stack (ingest, serve, Airflow) under traffic
while Airflow runs the gated incremental cycle; one window is poisoned, the champion is rolled back
and forward, everything is stopped, and the artifacts are measured. Airflow's API server boots
while history is imported and the base is trained.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from headrace import stack
from headrace.declaration import LineSpec
from headrace.demo.bootstrap import Bootstrap
from headrace.demo.claims import claims
from headrace.demo.drills import Drills
from headrace.errors import EnvironmentFault
from headrace.events import event_schema
from headrace.log.files import FileLog
from headrace.report.measure import write
from headrace.sample import head_tick, read_tick
from headrace.settings import Settings, find_line
from headrace.simulate import campaign as simulate
from headrace.simulate.outbox import now_us

LINE: Final = "coupons"
EXTRA_S: Final = 100.0  # traffic goes on at most so much longer while a drill waits for its cycle
DRAIN_S: Final = 20.0
SHOCK_AT: Final = 0.3  # of the traffic's length


def run(settings: Settings, minutes: float = 4.5, keep: bool = True) -> int:
    """Run the demo in a home of its own (`demo_settings`).

    Returns 0 if all claims hold, 1 naming each miss,
    130 after Ctrl-C. Raises `EnvironmentFault` before anything is written where a stack already
    runs, a port is taken or the disk is full. No process is left behind, however it ends.
    """
    console = Console()
    demo = Demo(demo_settings(settings), minutes, console)
    folder = demo.settings.home.parent
    began = time.monotonic()
    try:
        with demo.progress:
            demo.fresh_home()
            demo.loop()
            demo.stage("measuring what happened")
            measured = write(demo.settings, demo.spec, folder, claims)
    except KeyboardInterrupt:
        console.print("interrupted; the stack is stopped and nothing is left running")
        return 130
    if not keep:
        shutil.rmtree(demo.settings.home)
    return show(console, measured, folder, time.monotonic() - began)


def demo_settings(settings: Settings) -> Settings:
    """The same settings with the demo's own home, so that it never touches a stack's files.

    Each profile has a folder of its own, `demo` or `demo-<profile>`: reports stand side by side.
    """
    name = "demo" if settings.profile == "local" else f"demo-{settings.profile}"
    return replace(settings, home=settings.home.parent / name / "stack")


@dataclass
class Demo:
    """One run: where it lives, how long it lasts, and what is shown meanwhile."""

    settings: Settings
    minutes: float
    console: Console
    spec: LineSpec = field(init=False)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.spec = find_line(self.settings, LINE)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(
            *columns, console=self.console, refresh_per_second=2, transient=True
        )
        self._task = self.progress.add_task("starting", total=None)

    def say(self, text: str) -> None:
        """One line that stays above the progress."""
        self.progress.console.print(text, highlight=False, markup=False)

    def stage(self, text: str) -> None:
        """What is going on now."""
        self.progress.update(self._task, description=text)
        if not self.console.is_terminal:
            self.say(text)

    def fresh_home(self) -> None:
        """Remove an earlier demo's files, unless a stack could not start afterwards."""
        home = self.settings.home
        if stack.status(self.settings)["running"]:
            raise EnvironmentFault(
                f"a stack is already running in {home}; end it with "
                f"`HEADRACE_HOME={home} headrace down`"
            )
        stack.check_ports(self.settings)
        stack.check_disk(home)
        if home.exists():
            shutil.rmtree(home)

    def loop(self) -> None:
        """Start the stack, keep traffic and drills on, drain, and stop everything."""
        self.stage("starting the stack, importing history, training the base model")
        with stack.running(
            self.settings, LINE, service_list=Bootstrap(self.spec, self.say), say=self.say
        ):
            with self._traffic() as drills:
                self._watch(drills)
            self.stage("draining")
            self._drain()
            self.stage("stopping the stack")

    @contextmanager
    def _traffic(self) -> Iterator[Drills]:
        """Simulated traffic in a thread; it and the flipped labels end with the block."""
        self._await_ready()
        started_us, stop = now_us(), threading.Event()
        shock_us = started_us + int(SHOCK_AT * self.minutes * 60e6)
        config = simulate.SimulatorConfig(seed=self.spec.seed, shock_at_us=shock_us)
        arguments = (self.settings, self.spec, config, stop)
        thread = threading.Thread(target=simulate.run, args=arguments, name="simulator")
        drills = Drills(self.settings, self.spec, started_us, self.say)
        thread.start()
        try:
            yield drills
        finally:
            drills.end_poison()
            stop.set()
            thread.join()

    def _await_ready(self, timeout_s: float = 60.0) -> None:
        import httpx

        url, deadline = f"{self.settings.server_url}/v2/health/ready", time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if httpx.get(url, timeout=5.0, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass  # it restarts; ask again
            time.sleep(0.2)
        raise EnvironmentFault(f"{url}: not ready within {timeout_s:.0f} s; look at serve.log")

    def _watch(self, drills: Drills) -> None:
        """Step through the drills until time is up (a little longer for what has not come yet)."""
        length_s, seen = self.minutes * 60, len(drills.store.history())
        while (elapsed_s := (now_us() - drills.started_us) / 1e6) < length_s + EXTRA_S:
            if elapsed_s >= length_s and drills.done:
                break
            history = drills.store.history()
            for champion in history[seen:]:
                reason = champion.reason
                self.say(f"{elapsed_s:5.0f} s  {champion.action} {champion.version}: {reason}")
            seen = len(history)
            drills.step()
            self.progress.update(
                self._task, description=f"traffic, {len(drills.promotions())} promotions"
            )
            time.sleep(0.5)

    def _drain(self) -> None:
        """Wait until ingest has read the whole log."""
        home = self.settings.line_home(LINE)
        log = FileLog(home / "log" / "events", event_schema(self.spec))
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            if read_tick(home, head_tick(home) - 1).events[1] >= log.head:
                return
            time.sleep(0.5)


def show(console: Console, measured: Mapping[str, Any], folder: Path, took_s: float) -> int:
    """Print the final table; the exit code: 0 when every claim holds, otherwise 1."""
    table = Table("claim", "found", "holds", title=f"Headrace demo, {took_s:.0f} s")
    for claim in measured["checks"]:
        table.add_row(claim["name"], claim["found"], "yes" if claim["holds"] else "NO")
    console.print(table)
    loss, clicks = measured["logloss"], measured["click_rate"]
    for title, figures, keys in (
        ("log loss", loss, ("served", "frozen_base", "oracle")),
        ("click rate", clicks, ("served", "frozen_base_estimate", "oracle")),
    ):
        text = ", ".join(f"{key} {figures[key]:.4f}" for key in keys if figures[key] is not None)
        console.print(f"{title}: {text}", highlight=False)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    missed = [claim["name"] for claim in measured["checks"] if not claim["holds"]]
    if missed:
        console.print(f"missed: {'; '.join(missed)}", highlight=False)
    return 1 if missed else 0
