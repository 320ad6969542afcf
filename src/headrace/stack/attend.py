"""Look after the resident learner: a process that lives but does no work is started again.

The supervisor brings back what dies; it cannot see a process that hangs, or one that somebody
stopped. Whoever looks is Airflow, once a minute.
"""

from __future__ import annotations

import time
from typing import Final, Literal

import httpx

from headrace import turns
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.line import LineStore
from headrace.settings import Settings
from headrace.stack import record, supervisor

SERVICE: Final = "learn"
SILENT_S: Final = 60.0
"""A learner that has had a champion to continue for so long and has not beaten hangs."""
STARTED_S: Final = 90.0
_PATIENCE_S: Final = 5.0


def attend(
    settings: Settings, spec: LineSpec, wait_s: float = STARTED_S
) -> Literal["healthy", "restarted"]:
    """Restart the line's learner through the supervisor if it is not well, and see it well again.

    Raises `EnvironmentFault` naming what is wrong when no supervisor runs here that has it, or when
    it is not well `wait_s` after its restart.
    """
    wrong = ailment(settings, spec)
    if wrong is None:
        return "healthy"
    stack = record.read(settings)
    if stack is None or SERVICE not in stack.services or not supervisor.answers(stack.endpoint):
        raise EnvironmentFault(
            f"{wrong}, and no stack of {settings.home} has a learner to restart; "
            f"run `headrace up --line {spec.line}`, or `headrace learn` where it is to run"
        )
    supervisor.ask(stack.endpoint, "restart", name=SERVICE)
    deadline = time.monotonic() + wait_s
    while ailment(settings, spec) is not None:
        if time.monotonic() >= deadline:
            log = settings.home / "logs" / f"{SERVICE}.log"
            raise EnvironmentFault(
                f"{wrong}, and {wait_s:.0f} s after a restart {ailment(settings, spec)}; the end "
                f"of {log}:\n{supervisor.tail(log)}"
            )
        time.sleep(0.5)
    return "restarted"


def ailment(settings: Settings, spec: LineSpec) -> str | None:
    """What is wrong with the line's learner, None when it answers and beats.

    It may fail (its own `/health` says so) for reasons that a restart does not mend; that is wrong
    too. It does not beat before there is a champion to continue.
    """
    try:
        answer = httpx.get(f"{settings.learner_url}/health", timeout=_PATIENCE_S, trust_env=False)
    except httpx.TransportError as problem:
        return f"the learner of {spec.line!r} does not answer ({type(problem).__name__})"
    if answer.is_error:
        return f"the learner of {spec.line!r} is failing: {answer.text[:500]}"
    champion = LineStore(settings.line_store_url(spec.line), spec.line).champion()
    if champion is None:
        return None
    beat = turns.heard(settings.line_home(spec.line))
    since_us = champion.at_us if beat is None else beat["at_us"]
    age_s = time.time() - since_us / 1e6
    return f"the learner of {spec.line!r} is silent for {age_s:.0f} s" if age_s > SILENT_S else None
