"""`<home>/run/stack.json`: what was started, for every later `down` and `status`."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.settings import Settings
from headrace.stack.services import stack_environ

LONGEST_SOCKET_PATH = 90  # the kernel allows 107 bytes


@dataclass(frozen=True)
class Stack:
    """What runs. `boot_s`: seconds until the last service was healthy, 0 while starting."""

    stack_id: str
    line: str
    home: str
    started_at: str
    endpoint: str
    urls: dict[str, str]
    services: tuple[str, ...]
    boot_s: float = 0.0

    def environ(self, settings: Settings) -> dict[str, str]:
        """Environment for further processes that are to end with the stack."""
        return stack_environ(settings, self.stack_id)


def endpoint_in(run: Path) -> str:
    """Address of the supervisor: a socket below `run`, elsewhere if that path is too long."""
    short = len(str(run)) <= LONGEST_SOCKET_PATH
    folder = run if short else Path(tempfile.mkdtemp(prefix="headrace-"))
    return f"ipc://{folder}/circus.sock"


def write(settings: Settings, stack: Stack) -> None:
    """Replace the record, atomically."""
    path = settings.home / "run" / "stack.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(stack), indent=2), encoding="utf-8")
    temporary.replace(path)


def read(settings: Settings) -> Stack | None:
    """The record of this home, None without one; its processes may be gone."""
    try:
        raw = json.loads((settings.home / "run" / "stack.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Stack(**{**raw, "services": tuple(raw["services"])})


def forget(settings: Settings) -> None:
    """Remove what a stack leaves in the file system; its processes are gone."""
    stack = read(settings)
    run = settings.home / "run"
    if stack is not None:
        folder = Path(stack.endpoint.removeprefix("ipc://")).parent
        for name in ("circus.sock", "events.sock"):
            (folder / name).unlink(missing_ok=True)
        if folder != run:
            shutil.rmtree(folder, ignore_errors=True)
    (run / "stack.json").unlink(missing_ok=True)
