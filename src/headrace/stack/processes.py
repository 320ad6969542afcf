"""Find and end the processes of a stack by what the kernel says, not by what we remember.

Every process of a stack carries `HEADRACE_STACK_ID` and `HEADRACE_HOME` in the environment
it was started with; children inherit both, whatever session or parent they end up with. So
a stack can be ended from any shell, also after its starter and its supervisor were killed.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

MARK = "HEADRACE_STACK_ID"


def stack_processes(home: Path) -> dict[int, str]:
    """Living processes of the stack in `home`: pid → command line. The caller is left out.

    Zombies have no environment any more and do not count; processes of other users cannot
    be read and do not either.
    """
    where = f"HEADRACE_HOME={home}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            if where in environ and any(part.startswith(f"{MARK}=".encode()) for part in environ):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                found[int(entry.name)] = command.decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or it is not ours
    return found


def wait_until_gone(home: Path, timeout_s: float) -> bool:
    """Whether no process of the stack is left after at most `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while stack_processes(home):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def end_processes(home: Path, signum: signal.Signals) -> None:
    """Send a signal to every process of the stack."""
    for pid in stack_processes(home):
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
