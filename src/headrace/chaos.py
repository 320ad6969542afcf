"""Kill what runs: services of a stack die by SIGKILL at random, and the supervisor has to do.

The stack is the real one with whatever traffic it has. A kill is followed until the service is
healthy again under another process; at the end every event is accounted for.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from headrace import stack
from headrace.account import account
from headrace.errors import EnvironmentFault
from headrace.settings import Settings, find_line

RECOVERY_S: Final = 240.0
_LOOK_S: Final = 0.2

Status = Callable[[Settings], dict[str, Any]]
Say = Callable[[str], None]


@dataclass
class Kills:
    """What was killed, and the seconds until it was healthy again, by service."""

    recovered_s: dict[str, list[float]] = field(default_factory=dict)

    def told(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """As a fault of docs/results.md (see `results`)."""
        every = [took for times in self.recovered_s.values() for took in times]
        return {
            "what": "services of a running stack killed by SIGKILL at random moments",
            "command": "headrace chaos",
            "kills": len(every),
            "stages": {name: len(times) for name, times in sorted(self.recovered_s.items())},
            "end": "all services healthy, every event accounted for",
            "lost": counts["lost"],
            "duplicated": counts["duplicated"],
            "recovered_s": {
                "median": round(float(np.median(every)), 2),
                "max": round(max(every), 2),
            },
        }


def run(
    settings: Settings,
    line: str,
    kills: int,
    *,
    seed: int = 0,
    apart_s: float = 5.0,
    status: Status = stack.status,
    say: Say = stack.write_line,
) -> dict[str, Any]:
    """Kill `kills` services of the home's stack, one after the other; what came of it.

    Between two kills lie up to `apart_s` seconds. Raises `EnvironmentFault` where no stack of the
    line runs, or a service is not healthy again within four minutes.
    """
    spec = find_line(settings, line)
    now = status(settings)
    if not now["supervised"] or now["line"] != line:
        raise EnvironmentFault(
            f"no supervised stack of line {line!r} runs in {settings.home}; start one "
            "(`headrace up --simulate`)"
        )
    dice, done = random.Random(seed), Kills()  # noqa: S311 (a choice of victims)
    for number in range(kills):
        time.sleep(dice.uniform(0, apart_s))
        victim = dice.choice(_healthy(status(settings)))
        os.kill(victim["pid"], signal.SIGKILL)
        took_s = _await(settings, status, victim)
        done.recovered_s.setdefault(victim["name"], []).append(took_s)
        say(f"{number + 1}: {victim['name']} (process {victim['pid']}) back after {took_s:.1f} s")
    return done.told(account(settings, spec))


def _healthy(now: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [one for one in now["services"] if one["state"] == "healthy" and one["pid"]]
    if not found:
        raise EnvironmentFault("no service of the stack is healthy; see `headrace status`")
    return sorted(found, key=lambda one: str(one["name"]))


def _await(settings: Settings, status: Status, victim: Mapping[str, Any]) -> float:
    began = time.monotonic()
    while (took_s := time.monotonic() - began) < RECOVERY_S:
        for one in status(settings)["services"]:
            back = one["name"] == victim["name"] and one["pid"] not in (None, victim["pid"])
            if back and one["state"] == "healthy":
                return took_s
        time.sleep(_LOOK_S)
    raise EnvironmentFault(
        f"{victim['name']} is not healthy {RECOVERY_S:.0f} s after it was killed; see its log in "
        f"{settings.home / 'logs'}"
    )
