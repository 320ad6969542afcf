"""The records of a line's cycles, `<line home>/cycles/<started_us>-<version or none>.json`.

Every cycle, whatever its end, leaves one; the steps of a learner stand in its `journal`. Reading
them imports no array library: DAGs do it in tasks that would otherwise take seconds to import what
they do not use.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from headrace import journal
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.settings import Settings

Kind = Literal["incremental", "full"]
"""What is asked for by name; the steps of a learner are cycles of kind `learner`."""
Outcome = Literal["running", "promoted", "rejected", "idle", "failed"]
KINDS: Final[tuple[Kind, ...]] = ("incremental", "full")
_RUN: Final = "run-"


@dataclass(frozen=True)
class Cycle:
    """How far a cycle is or how it ended. `stage`: data, train, evaluate, model or promote.

    `outcome`: running; promoted; rejected (by a gate); idle (too few new rows to learn); failed
    (an error, named in `reasons`). `unmirrored`: why MLflow lagged behind the line at the end, None
    when it did not or is not used. Times are int64 microseconds.
    """

    run: str
    kind: str
    started_us: int
    ended_us: int = 0
    interval: tuple[int, int] | None = None
    version: str | None = None
    outcome: Outcome = "running"
    stage: str = "data"
    reasons: tuple[str, ...] = ()
    unmirrored: str | None = None

    @property
    def passed(self) -> bool:
        return self.outcome == "promoted"


def new_run() -> str:
    """A name for a cycle that starts now; it carries the start in microseconds."""
    return f"{_RUN}{time.time_ns() // 1_000}"


def started(run: str, kind: str) -> Cycle:
    """The cycle of that name, begun and not ended."""
    text = run.removeprefix(_RUN)
    if not run.startswith(_RUN) or not text.isdigit():
        raise InputError(f"run={run!r} is not a cycle's name; leave it empty or use new_run()")
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    return Cycle(run=run, kind=kind, started_us=int(text))


def record(settings: Settings, spec: LineSpec, cycle: Cycle) -> Cycle:
    """Write the record of an ended cycle, atomically, and return the cycle with its end."""
    ended = replace(cycle, ended_us=time.time_ns() // 1_000)
    folder = settings.line_home(spec.line) / "cycles"
    path = folder / f"{ended.started_us}-{ended.version or 'none'}.json"
    write_json(path, {**asdict(ended), "passed": ended.passed})
    for earlier in folder.glob(f"{ended.started_us}-*.json"):
        if earlier != path:  # of an attempt that failed before a retry came further
            earlier.unlink()
    return ended


def note(settings: Settings, spec: LineSpec, step: Cycle) -> Cycle:
    """Append the record of a learner's ended step, and return the step with its end."""
    ended = replace(step, ended_us=time.time_ns() // 1_000)
    journal.write(settings.line_home(spec.line), {**asdict(ended), "passed": ended.passed})
    return ended


def records(settings: Settings, spec: LineSpec) -> list[Cycle]:
    """All ended cycles of the line and the learner's newest steps, oldest first."""
    home = settings.line_home(spec.line)
    cycles = [_read(path) for path in (home / "cycles").glob("*.json")]
    steps = [_cycle(body) for body in journal.read(home)]
    return sorted([*cycles, *steps], key=lambda cycle: cycle.started_us)


def find_record(settings: Settings, spec: LineSpec, run: str) -> Cycle | None:
    """The record of one cycle by its name, None while it has not ended."""
    began = started(run, KINDS[0]).started_us
    paths = (settings.line_home(spec.line) / "cycles").glob(f"{began}-*.json")
    return max((_read(path) for path in paths), key=lambda c: c.ended_us, default=None)


def newest_interval_end(settings: Settings, spec: LineSpec) -> int:
    """The tick behind the window of the newest incremental cycle that had one; 0 without any."""
    folder = settings.line_home(spec.line) / "cycles"
    by_start = sorted(
        folder.glob("*.json"), key=lambda path: int(path.name.partition("-")[0]), reverse=True
    )
    for path in by_start:
        cycle = _read(path)
        if cycle.kind == "incremental" and cycle.interval is not None:
            return cycle.interval[1]
    return 0


def _read(path: Path) -> Cycle:
    return _cycle(json.loads(path.read_text(encoding="utf-8")))


def _cycle(body: dict[str, Any]) -> Cycle:
    body.pop("passed")
    interval = body.pop("interval")
    body["reasons"] = tuple(body["reasons"])
    return Cycle(**body, interval=None if interval is None else (interval[0], interval[1]))
