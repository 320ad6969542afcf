"""`up`, `down`, `status`, `running`: a line's stack from its first process to its last.

What runs is written to `<home>/run/stack.json` before the first process exists, and every
process carries the stack's mark (see `processes.py`), so `down` works from any shell and after
any kind of death, those of the starter and of the supervisor included.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.errors import EnvironmentFault
from headrace.settings import Settings, find_line
from headrace.stack import record, supervisor
from headrace.stack.airflow_home import USER, password
from headrace.stack.processes import end_processes, stack_processes, wait_until_gone
from headrace.stack.record import Stack
from headrace.stack.services import Service, ServiceList, services
from headrace.stack.signals import signals_raise, signals_wait

MIN_FREE_BYTES = 2 * 1024**3
START_TIMEOUT_S = 240.0
MAX_DEATHS = 3

Say = Callable[[str], None]


def write_line(text: str) -> None:
    """Default of `say`: one line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def up(
    settings: Settings,
    line: str,
    foreground: bool = False,
    *,
    service_list: ServiceList = services,
    say: Say = write_line,
) -> Stack:
    """Start the line's stack and return when every service is healthy.

    `foreground` stays until Ctrl-C, SIGTERM or the end of the supervisor, then ends the stack.
    Raises `DeclarationError` for an unknown line and `EnvironmentFault` (port in use, stack
    already running, disk full, a service that keeps dying); then nothing is left running.
    """
    if foreground:
        with running(settings, line, service_list=service_list, say=say) as stack:
            say("Ctrl-C ends the stack")
            while supervisor.answers(stack.endpoint):
                time.sleep(1.0)
        return stack
    with signals_raise(), _claimed(settings, line, service_list) as stack:
        try:
            return _start(settings, stack, service_list, say)
        except BaseException:
            _stop(settings, say)
            raise


@contextmanager
def running(
    settings: Settings,
    line: str,
    *,
    service_list: ServiceList = services,
    say: Say = write_line,
) -> Iterator[Stack]:
    """A healthy stack inside the block; nothing of it after the block, however that ends."""
    with signals_raise(), _claimed(settings, line, service_list) as stack:
        try:
            yield _start(settings, stack, service_list, say)
        finally:
            _stop(settings, say)


def down(settings: Settings, *, say: Say = write_line) -> bool:
    """End the stack of this home; returns whether there was one. Works from any shell.

    Raises `EnvironmentFault` naming the processes that survived even SIGKILL.
    """
    found = bool(stack_processes(settings.home))
    _stop(settings, say)
    say("the stack has ended" if found else f"no stack is running in {settings.home}")
    return found


def status(settings: Settings, *, service_list: ServiceList = services) -> dict[str, Any]:
    """What runs: `running` (any process lives), `supervised`, `line`, `since`, `boot_s`, `urls`,
    `champion` with `staleness_s` (None before there is one), and `services`, each with `name`,
    `state` (healthy, unhealthy, down), `pid`, `since`, `url`.
    """
    stack = record.read(settings)
    alive = bool(stack_processes(settings.home))
    if stack is None or not alive:
        return {"running": alive, "supervised": False, "line": None, "services": []}
    supervised = supervisor.answers(stack.endpoint)
    pids = supervisor.pids(stack.endpoint, stack.services) if supervised else {}
    known = service_list(settings, stack.line)
    extra = set(stack.services) - {service.name for service in known}
    listed = (*known, *(Service(name, (), 0, lambda _since: True) for name in sorted(extra)))
    return {
        "running": True,
        "supervised": supervised,
        "line": stack.line,
        "since": stack.started_at,
        "boot_s": stack.boot_s,
        "urls": stack.urls,
        **_freshness(settings, stack.line),
        "services": [_service_status(service, pids.get(service.name)) for service in listed],
    }


def _freshness(settings: Settings, line: str) -> dict[str, Any]:
    """The champion, and how old the newest event is that it learned, in seconds."""
    from headrace.line import LineStore  # asked for by people, not by those who start a stack

    store = LineStore(settings.line_store_url(line), line)
    champion = store.champion()
    if champion is None:
        return {"champion": None, "staleness_s": None}
    watermark_us = store.get(champion.version).watermark_us
    age_s = time.time() - watermark_us / 1e6
    return {"champion": champion.version, "staleness_s": round(age_s, 1)}


def _service_status(service: Service, pid: int | None) -> dict[str, Any]:
    since = None if pid is None else supervisor.started_at(pid)
    state = "down"
    if since is not None:
        state = "healthy" if service.ready(since) else "unhealthy"
    return {
        "name": service.name,
        "state": state,
        "pid": pid,
        "since": since and since.isoformat(),
        "url": service.url,
    }


@contextmanager
def _claimed(settings: Settings, line: str, service_list: ServiceList) -> Iterator[Stack]:
    """Refuse whatever can be refused beforehand, then own the home while the block runs."""
    find_line(settings, line)
    check_disk(settings.home)
    run = settings.home / "run"
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _already_running(settings) from None
        if stack_processes(settings.home):
            raise _already_running(settings)
        check_ports(settings, line)
        record.forget(settings)
        stack = Stack(
            stack_id=secrets.token_hex(8),
            line=line,
            home=str(settings.home),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            endpoint=record.endpoint_in(run),
            urls={
                "airflow": settings.airflow_url,
                "serving": settings.server_url,
                "collector": settings.collector_url,
            },
            services=tuple(service.name for service in service_list(settings, line)),
        )
        record.write(settings, stack)
        yield stack


def _start(settings: Settings, stack: Stack, service_list: ServiceList, say: Say) -> Stack:
    began = time.monotonic()
    run, logs = settings.home / "run", settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environ = stack.environ(settings)
    every = service_list(settings, stack.line)
    say(f"starting the stack of line {stack.line!r}; logs in {logs}")
    supervisor.launch(stack.endpoint, run, logs, every, environ)
    for wave in sorted({service.wave for service in every}):
        members = [service for service in every if service.wave == wave]
        since = datetime.now(UTC)
        for service in members:
            if service.prepare is not None:
                service.prepare(environ, logs)
            supervisor.ask(stack.endpoint, "start", name=service.name)
        _await_ready(stack, logs, members, since, lambda name: _ready_line(say, name, began))
    stack = replace(stack, boot_s=round(time.monotonic() - began, 1))
    record.write(settings, stack)
    say(f"all healthy after {stack.boot_s:.0f} s")
    for name, url in stack.urls.items():
        say(f"  {name:<10} {url}")
    if any(service.name.startswith("airflow") for service in every):
        say(f"  sign in to Airflow as {USER!r} with the password {password(settings)!r}")
    return stack


def _ready_line(say: Say, name: str, began: float) -> None:
    say(f"  {name} is ready after {time.monotonic() - began:.0f} s")


def _await_ready(
    stack: Stack, logs: Path, members: list[Service], since: datetime, on_ready: Say
) -> None:
    waiting = {service.name: service for service in members}
    lives: dict[str, set[int]] = {name: set() for name in waiting}
    deadline = time.monotonic() + START_TIMEOUT_S
    while waiting:
        pids = supervisor.pids(stack.endpoint, waiting)
        for name, service in list(waiting.items()):
            lives[name] |= {pids[name]} if name in pids else set()
            if name in pids and service.ready(since):
                on_ready(name)
                del waiting[name]
            elif len(lives[name]) > MAX_DEATHS or time.monotonic() > deadline:
                log = logs / f"{name}.log"
                died = len(lives[name]) > MAX_DEATHS
                what = "keeps dying" if died else f"was not healthy after {START_TIMEOUT_S:.0f} s"
                raise EnvironmentFault(f"{name} {what}; the end of {log}:\n{supervisor.tail(log)}")
        time.sleep(0.25)


def _stop(settings: Settings, say: Say) -> None:
    """Ask the supervisor, then every process (SIGTERM), then leave no choice (SIGKILL)."""
    with signals_wait():
        if stack_processes(settings.home):
            say("ending the stack …")
        stack = record.read(settings)
        if stack is not None and supervisor.answers(stack.endpoint):
            with suppress(EnvironmentFault):  # it may end before it answers
                supervisor.ask(stack.endpoint, "quit")
            supervisor.wait_for_end(stack.endpoint)
        end_processes(settings.home, signal.SIGTERM)
        if not wait_until_gone(settings.home, 5):
            end_processes(settings.home, signal.SIGKILL)
        if not wait_until_gone(settings.home, 5):
            raise EnvironmentFault(
                f"these processes do not end: {stack_processes(settings.home)}; end them by hand"
            )
        record.forget(settings)


def check_disk(home: Path) -> None:
    """Raise `EnvironmentFault` unless the disk has room for a stack."""
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise EnvironmentFault(
            f"{existing} has {free / 1024**3:.1f} GiB free and a stack needs "
            f"{MIN_FREE_BYTES / 1024**3:.0f} GiB; make room or set HEADRACE_HOME to another disk"
        )


def check_ports(settings: Settings, line: str | None = None) -> None:
    """Raise `EnvironmentFault` naming the first port that is taken, and its setting.

    The learner's port is asked for where the line has one in its stack.
    """
    ports = {
        "HEADRACE_SERVER_PORT": settings.server_port,
        "HEADRACE_GRPC_PORT": settings.grpc_port,
        "HEADRACE_COLLECTOR_PORT": settings.collector_port,
        "HEADRACE_AIRFLOW_PORT": settings.airflow_port,
    }
    if line is not None and find_line(settings, line).cadence.learn is not None:
        ports["HEADRACE_LEARNER_PORT"] = settings.learner_port
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as problem:
                raise EnvironmentFault(
                    f"port {port} on {settings.host} cannot be used ({problem.strerror}); end the "
                    f"program that holds it (`make down` if it is Headrace's) or set {name} to a "
                    "free port"
                ) from None


def _already_running(settings: Settings) -> EnvironmentFault:
    stack = record.read(settings)
    which = "" if stack is None else f" for line {stack.line!r} since {stack.started_at}"
    return EnvironmentFault(
        f"a stack is already running in {settings.home}{which}; end it with `make down`"
    )
