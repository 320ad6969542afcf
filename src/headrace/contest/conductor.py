"""The process that conducts a line's races: a pass every few seconds, and a sign of life."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from headrace.atomic import write_json
from headrace.contest.conduct import Contest
from headrace.declaration import LineSpec
from headrace.errors import HeadraceError
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
EVERY_US: Final = 5_000_000


def run(settings: Settings, spec: LineSpec, stop: threading.Event) -> None:
    """Passes every `cadence.race` (5 s) until `stop`; one that fails is told and tried again.

    `race/conductor.json` in the line's home says when the newest pass ended, and what failed.
    """
    interval_s = (spec.cadence.race or EVERY_US) / 1e6
    contest, told = Contest(settings, spec), ""
    while not stop.is_set():
        problem, look = "", None
        try:
            look = contest.once()
        except HeadraceError as fault:
            problem = str(fault)
            if problem != told:
                LOG.error("%s: race: %s", spec.line, problem)
        told = problem
        body = {"race": look and look.race.name, "problem": problem or None}
        write_json(beat(settings, spec.line), {"at": datetime.now(UTC).isoformat(), **body})
        stop.wait(interval_s)


def beat(settings: Settings, line: str) -> Path:
    """Where a running conductor says that it is alive."""
    return settings.line_home(line) / "race" / "conductor.json"
