"""Processes that are killed: a server with warm imports forks one child for each life.

A Python process that imports Arrow and its company takes a second to start, a fork of one that
has imported them takes a millisecond. The server starts no thread, so a fork is safe.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

PROJECT = Path(__file__).resolve().parents[1]


class Life(NamedTuple):
    """How a life ended: by SIGKILL, or with an exit code."""

    killed: bool
    code: int
    lived_s: float


class Lives:
    """Forks that run `function` (as `package.module:name`), one after the other."""

    def __init__(self, function: str, preload: tuple[str, ...] = (), **environ: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.lives", function, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=os.environ | environ,
        )
        assert self._hear() == "ready\n"

    def begin(self, *arguments: str, kill_after_s: float | None = None) -> None:
        """Start a life; at most one goes on at a time."""
        assert self._server.stdin is not None
        order = {"arguments": arguments, "kill_after_s": kill_after_s}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()

    def end(self) -> Life:
        """Wait for the life that began."""
        return Life(**json.loads(self._hear()))

    def live(self, *arguments: str, kill_after_s: float | None = None) -> Life:
        """One life from its begin to its end."""
        self.begin(*arguments, kill_after_s=kill_after_s)
        return self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(timeout=60)

    def _hear(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def serve(run: Callable[..., object]) -> None:
    """Fork for each order on stdin, kill when it says so, answer how it ended."""
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _live(run, order["arguments"])
        handle = os.pidfd_open(child)
        ended = select.select([handle], [], [], order["kill_after_s"])[0]
        if not ended:
            os.kill(child, signal.SIGKILL)
        lived_s = time.monotonic() - began
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(handle)
        life = Life(code == -signal.SIGKILL, code, lived_s)
        print(json.dumps(life._asdict()), flush=True)  # noqa: T201


def _live(run: Callable[..., object], arguments: list[str]) -> None:
    code = 1
    try:
        os.dup2(2, 1)  # stdout belongs to the server
        run(*arguments)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 (whatever it was, the server goes on)
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    for preloaded in sys.argv[2:]:
        import_module(preloaded)
    serve(getattr(import_module(module), name))
