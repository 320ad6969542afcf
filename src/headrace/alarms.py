"""Alarms of a line: a record on disk, a line in the log, and whoever is to be told.

`<line home>/guard/alarms/<at_us>.json` keeps each. `HEADRACE_ALARM_COMMAND` names a program that
gets the record as JSON on its standard input: a mail, a chat message, a pager. It may fail; the
record then says so, and nothing waits for it longer than ten seconds.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from headrace.atomic import write_json
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
_PATIENCE_S: Final = 10.0


def raise_alarm(settings: Settings, line: str, kind: str, body: Mapping[str, Any]) -> Path:
    """Record an alarm of a line, log it, tell the notifier; returns the record's path."""
    at_us = time.time_ns() // 1_000
    alarm = {"at_us": at_us, "line": line, "kind": kind, **body}
    path = folder(settings, line) / f"{at_us}.json"
    write_json(path, alarm)  # first: a notifier that hangs must not cost the record
    LOG.error("%s: %s: %s", line, kind, json.dumps(dict(body), default=str))
    problem = _tell(settings.alarm_command, alarm)
    if problem is not None:
        LOG.error("%s: the alarm was not sent: %s", line, problem)
        write_json(path, {**alarm, "not_sent": problem})
    return path


def alarms(settings: Settings, line: str) -> list[dict[str, Any]]:
    """All recorded alarms of a line, oldest first."""
    paths = sorted(folder(settings, line).glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def folder(settings: Settings, line: str) -> Path:
    """Where the records of a line's alarms are."""
    return settings.line_home(line) / "guard" / "alarms"


def _tell(command: str | None, alarm: Mapping[str, Any]) -> str | None:
    """Why the notifier was not told, None when it was or there is none."""
    if command is None:
        return None
    try:
        done = subprocess.run(
            shlex.split(command),
            input=json.dumps(alarm),
            text=True,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        return f"{command}: {problem}"
    if done.returncode:
        return f"{command}: exit {done.returncode}: {done.stderr.strip()[-200:]}"
    return None
