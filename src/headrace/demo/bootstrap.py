"""A stack whose line starts from simulated history: import it, train a base, send traffic.

History is imported before ingest starts, and the base model is trained as a child process while
Airflow's API server boots; the scheduler waits for it. A line that has a champion already is
left as it is.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.line import LineStore
from headrace.settings import Settings
from headrace.simulate import world
from headrace.stack.services import Service, services

TICK_US: Final = 4_000_000
TRAINING_S: Final = 240.0
HEADRACE: Final = str(Path(sys.executable).with_name("headrace"))


@dataclass
class Bootstrap:
    """Hooks for a stack's services; call it as a service list."""

    spec: LineSpec
    say: Callable[[str], None]
    traffic: bool = False
    _base: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __call__(self, settings: Settings, line: str) -> tuple[Service, ...]:
        """The stack's services, history before ingest and the base model before the scheduler.

        With `traffic` the simulator is one of them.
        """

        def import_history(environ: Mapping[str, str], logs: Path) -> None:
            self._import_history(settings, environ, logs)

        def await_base(_environ: Mapping[str, str], logs: Path) -> None:
            self._await_base(settings, logs)

        hooks = {"ingest": import_history, "airflow-scheduler": await_base}
        hooked = [
            replace(service, prepare=hooks[service.name]) if service.name in hooks else service
            for service in services(settings, line)
        ]
        if self.traffic:
            command = (HEADRACE, "simulate", "--line", line)
            hooked.append(Service("simulate", command, 2, lambda _since: True))
        return tuple(sorted(hooked, key=lambda service: service.name != "airflow-api-server"))

    def _import_history(self, settings: Settings, environ: Mapping[str, str], logs: Path) -> None:
        from headrace.ingest.service import import_history
        from headrace.store import Store

        Store(settings).apply()
        home = settings.line_home(self.spec.line)
        if (
            LineStore(settings.line_store_url(self.spec.line), self.spec.line).champion()
            is not None
        ):
            return
        if not (home / "ticks").exists():
            config = world.SimulatorConfig(seed=self.spec.seed)
            events = world.history(self.spec, config, time.time_ns() // 1_000)
            import_history(settings, self.spec, events, TICK_US)
            self.say(f"imported {events.num_rows:,} events of history")
        with (logs / "base.log").open("wb") as log:
            # It carries the stack's mark, so that it ends with the stack however that ends.
            self._base = subprocess.Popen(
                [HEADRACE, "run", "full_train", "--line", self.spec.line],
                env=dict(environ),
                stdout=log,
                stderr=log,
            )

    def _await_base(self, settings: Settings, logs: Path) -> None:
        if self._base is not None:
            try:
                code = self._base.wait(timeout=TRAINING_S)
            except subprocess.TimeoutExpired:
                raise EnvironmentFault(
                    f"the base model was not trained within {TRAINING_S:.0f} s; "
                    f"look at {logs / 'base.log'}"
                ) from None
            if code != 0:
                tail = (logs / "base.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                raise EnvironmentFault(f"the base model was not promoted (exit {code}):\n{tail}")
        champion = LineStore(settings.line_store_url(self.spec.line), self.spec.line).champion()
        self.say(f"{champion.version if champion else 'no version'} is the champion")
