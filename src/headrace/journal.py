"""The learner's steps, `<line home>/learner/steps-<date>.jsonl`: one line each, appended.

A cycle leaves a file of its own, a learner with a step each second cannot. The journal tells
people and the report how steps ended; what counts (versions, champions, quarantine) is stored
elsewhere, so a line that a crash tore is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

KEEP: Final = timedelta(days=7)


def write(home: Path, entry: Mapping[str, Any]) -> None:
    """Append one step. It must hold `ended_us` (int64 us), whose day names the file."""
    day = _day(datetime.fromtimestamp(entry["ended_us"] / 1e6, UTC))
    path = home / "learner" / f"steps-{day}.jsonl"
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() and not _ends_a_line(path):
            file.write(b"\n")  # what a crash tore must not spoil this line too
        file.write(json.dumps(dict(entry), sort_keys=True).encode() + b"\n")
    if new:
        _forget(path.parent, datetime.fromtimestamp(entry["ended_us"] / 1e6, UTC) - KEEP)


def read(home: Path) -> Iterator[dict[str, Any]]:
    """All steps that are kept, oldest first."""
    for path in sorted((home / "learner").glob("steps-*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                yield entry


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _forget(folder: Path, before: datetime) -> None:
    for path in folder.glob("steps-*.jsonl"):
        if path.name < f"steps-{_day(before)}":
            path.unlink(missing_ok=True)


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d")
