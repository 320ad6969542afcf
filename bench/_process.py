"""One engine in a process of its own, so that CPU seconds and peak memory are its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.atomic import write_arrow


def in_a_process(module: str, engine: str, folder: Path) -> dict[str, Any]:
    """Run `python -m <module> <engine> <folder>` and return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, engine, str(folder)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} by {engine} failed: {done.stderr.strip()[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def tell(engine: str, folder: Path, answer: Callable[[], pa.Table]) -> dict[str, Any]:
    """Write the answer as `<folder>/<engine>.arrow`; return its CPU seconds and peak bytes."""
    started = time.process_time()
    write_arrow(folder / f"{engine}.arrow", answer())
    return {"cpu_s": time.process_time() - started, "peak_bytes": _peak_bytes()}


def read_arrow(path: Path) -> pa.Table:
    """Map an Arrow file."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _peak_bytes() -> int:
    # not ru_maxrss: a child's begins with what its parent held when it started it
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(told[1]) if told else 0
