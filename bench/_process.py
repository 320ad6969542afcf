"""One engine in a process of its own, so that CPU seconds and peak memory are its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.atomic import write_arrow

TICKS_A_S = os.sysconf("SC_CLK_TCK")


def in_a_process(module: str, engine: str, folder: Path) -> dict[str, Any]:
    """Run `python -m <module> <engine> <folder>` and return the JSON of its last line."""
    told: dict[str, Any] = json.loads(python("-m", module, engine, str(folder))[0].splitlines()[-1])
    return told


def python(*arguments: str) -> tuple[str, float]:
    """Run Python to its end; what it printed, and CPU seconds of it and all its descendants."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        seconds: dict[str, float] = {}
        while process.poll() is None:  # a child's time is gone with it, so it is read meanwhile
            seconds |= _tree(process.pid)
            time.sleep(0.2)
        printed = process.communicate()[0]
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{arguments} failed: {errors.read().strip()[-2000:]}")
    return printed, sum(seconds.values())


def cpu_of_tree(root: int) -> float:
    """CPU seconds so far of a process and its living descendants."""
    return sum(_tree(root).values())


def free_ports(count: int) -> list[int]:
    """Ports that nobody held a moment ago, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def tell(engine: str, folder: Path, answer: Callable[[], pa.Table]) -> dict[str, Any]:
    """Write the answer as `<folder>/<engine>.arrow`; return its CPU seconds and peak bytes."""
    started = time.process_time()
    write_arrow(folder / f"{engine}.arrow", answer())
    return {"cpu_s": time.process_time() - started, "peak_bytes": _peak_bytes()}


def read_arrow(path: Path) -> pa.Table:
    """Map an Arrow file."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _tree(root: int) -> dict[str, float]:
    """CPU seconds so far of a process and its descendants, by id and start."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    found, family = {}, [root]
    while family:
        parent = family.pop()
        if parent in stats:
            told = stats[parent]
            found[f"{parent} {told[19]}"] = (int(told[11]) + int(told[12])) / TICKS_A_S
            family += [child for child, fields in stats.items() if int(fields[1]) == parent]
    return found


def _peak_bytes() -> int:
    # not ru_maxrss: a child's begins with what its parent held when it started it
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(told[1]) if told else 0
