"""A disk that is slow for a while: each fsync of a running process takes that much longer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ABSENT = "strace is not installed; run `bash infra/setup/strace.sh` as root"
CALLS = "fsync,fdatasync"


class Slowness:
    """How many calls of a process were held up."""

    def __init__(self) -> None:
        self.calls = 0


@contextmanager
def slow_disk(pid: int, delay_s: float, folder: Path) -> Iterator[Slowness]:
    """Hold up every fsync of a process and its threads by `delay_s`, by means of the kernel.

    `strace` attaches to it, puts the delay before the calls, and lets go at the end. Everything
    else that the process asks of the kernel is a little slower too.
    """
    if shutil.which("strace") is None:
        pytest.skip(ABSENT)
    told, found = folder / "strace.txt", Slowness()
    command = ["strace", "-f", "-p", str(pid), "-o", str(told), "-e", f"trace={CALLS}"]
    command += ["-e", f"inject={CALLS}:delay_enter={int(delay_s * 1e6)}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        tracer.kill()
        pytest.skip(f"strace may not look into another process here: {said.strip()}")
    try:
        yield found
    finally:
        tracer.terminate()  # it detaches, and the process goes on
        tracer.communicate(timeout=60)
        found.calls = told.read_text(encoding="utf-8").count("(DELAYED)")
