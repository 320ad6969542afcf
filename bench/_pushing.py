"""What ingest does beside the load of the server's benchmark: push, each second, the windows that
impressions moved: those of every item and kind, and of `USERS_A_TICK` users with their pairs.

Ingest has cores of its own; here it shares the load's, so it steps back behind load and Redis.
`python -m bench._pushing`, in the environment of a home, until it is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from bench._bare import LINE
from bench._measure import SEED
from bench._serving import USERS, windows_of
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.stack.services import stack_environ
from headrace.store import Store

USERS_A_TICK: Final = 32


@contextmanager
def pushing(settings: Settings) -> Iterator[Callable[[bool], None]]:
    """A process on the load's core that pushes each second while it is told to (`push(True)`)."""
    command = [sys.executable, "-m", "bench._pushing"]
    environ = stack_environ(settings, "bench")
    with subprocess.Popen(
        command, cwd=PROJECT, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"{command} ended with {process.wait()} before its first tick")
        process.send_signal(signal.SIGSTOP)
        try:
            yield lambda on: process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode} during the load")
        finally:
            process.kill()


def main() -> None:
    """Push until the process is ended; a line is printed after the first tick."""
    os.nice(19)
    settings = load_settings()
    spec, store, rng = find_line(settings, LINE), Store(settings), np.random.default_rng(SEED)
    due = time.monotonic()
    for tick in range(1 << 30):
        users = rng.choice(USERS, USERS_A_TICK, replace=False)
        now_us = time.time_ns() // 1_000
        for view in spec.views:
            store.push(spec, view, windows_of(spec, view, rng, now_us, users.tolist()))
        if tick == 0:
            print("pushing", flush=True)  # noqa: T201 - whoever started it waits for this
        now = time.monotonic()
        due = max(due + 1.0, now)  # what was due while it stood still is not made up for
        time.sleep(due - now)


if __name__ == "__main__":
    main()
