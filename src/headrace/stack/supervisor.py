"""Circus, the supervisor: start it, tell it what to start, ask it what lives."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from circus.client import CircusClient
from circus.exc import CallError

from headrace.errors import EnvironmentFault
from headrace.stack.services import Service

GRACE_S = 10  # a service that has not ended this long after SIGTERM is killed
LOG_KEEP_BYTES = 32 * 1024**2
START_TIMEOUT_S = 30.0
BUSY_S = 30.0


def launch(
    endpoint: str,
    run: Path,
    logs: Path,
    services: Iterable[Service],
    environ: Mapping[str, str],
) -> None:
    """Start circusd in a session of its own, with every service known and none started.

    Raises `EnvironmentFault` naming the log when it does not answer within 30 s.
    """
    (run / "circus.ini").write_text(_configuration(endpoint, run, logs, services))
    log = logs / "supervisor.log"
    _rotate(log)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "circus.circusd", "circus.ini"],
            cwd=run,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the starter, which then ends the stack in order
        )
    # Reaps it when it ends, so that a long-lived caller holds no zombie.
    threading.Thread(target=process.wait, daemon=True, name="reap-circusd").start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(endpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            raise EnvironmentFault(
                f"the supervisor (circusd) did not start; the end of {log}:\n{tail(log)}"
            )
        time.sleep(0.1)


def ask(endpoint: str, command: str, timeout_s: float = 5.0, **properties: Any) -> dict[str, Any]:
    """Send one circus command. Raises `EnvironmentFault` without an answer or with a refusal.

    Circus does one thing at a time and refuses others meanwhile; those are asked again.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        answer = _ask_once(endpoint, command, timeout_s, properties)
        reason = str(answer.get("reason"))
        if answer.get("status") != "error":
            return answer
        if "already running" not in reason or time.monotonic() > deadline:
            raise EnvironmentFault(f"the supervisor refused {command} {properties}: {reason}")
        time.sleep(0.1)


def _ask_once(
    endpoint: str, command: str, timeout_s: float, properties: Mapping[str, Any]
) -> dict[str, Any]:
    client = CircusClient(endpoint=endpoint, timeout=timeout_s)
    try:
        answer: dict[str, Any] = client.send_message(command, **properties)
    except CallError as problem:
        raise EnvironmentFault(
            f"the supervisor does not answer ({command}: {problem}); run `make down`"
        ) from problem
    finally:
        client.stop()
    return answer


def answers(endpoint: str) -> bool:
    """Whether the supervisor behind this endpoint lives."""
    if not Path(endpoint.removeprefix("ipc://")).exists():
        return False
    try:
        ask(endpoint, "numwatchers", timeout_s=2.0)
    except EnvironmentFault:
        return False
    return True


def wait_for_end(endpoint: str) -> None:
    """Wait until the supervisor has ended its services and itself, a little beyond their grace."""
    deadline = time.monotonic() + GRACE_S + 5
    while answers(endpoint) and time.monotonic() < deadline:
        time.sleep(0.1)


def pids(endpoint: str, names: Iterable[str]) -> dict[str, int]:
    """Pid of each running service; one that is down has none."""
    found = {name: ask(endpoint, "list", name=name).get("pids") for name in names}
    return {name: int(some[0]) for name, some in found.items() if some}


def started_at(pid: int) -> datetime | None:
    """When a process was started (UTC, to the second), or None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    age_s = up_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(round(time.time() - age_s), UTC)


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for messages."""
    if not log.exists():
        return "(empty)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def _configuration(endpoint: str, run: Path, logs: Path, services: Iterable[Service]) -> str:
    folder = endpoint.removeprefix("ipc://").rpartition("/")[0]
    config = [
        "[circus]",
        f"endpoint = {endpoint}",
        f"pubsub_endpoint = ipc://{folder}/events.sock",
        "check_delay = 1",
    ]
    for service in services:
        log = logs / f"{service.name}.log"
        _rotate(log)
        # The service writes its log itself, so it outlives its supervisor and costs it nothing;
        # a script, because circus would expand `$` and split words in a command.
        command = shlex.join(service.command)
        script = run / f"{service.name}.sh"
        script.write_text(f"exec {command} >>{shlex.quote(str(log))} 2>&1\n")
        config += [
            f"[watcher:{service.name}]",
            f"cmd = /bin/sh ./{script.name}",
            "copy_env = True",
            "autostart = False",
            f"graceful_timeout = {GRACE_S}",
        ]
    return "\n".join(config) + "\n"


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
        log.replace(log.with_name(log.name + ".1"))
