"""Refused windows of ticks, with their reasons; a person can release them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.atomic import write_json
from headrace.errors import InputError, IntegrityError


class Quarantine:
    """Intervals of ticks `[from, to)` of one line that training leaves out.

    One file for each interval: `quarantine/<from>-<to>.json`; a released one moves to
    `quarantine/released/`.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "quarantine"

    def add(self, from_tick: int, to_tick: int, reasons: Sequence[str]) -> None:
        """Refuse ticks `[from_tick, to_tick)`; adding the same interval again keeps one."""
        if not 0 <= from_tick < to_tick:
            raise InputError(
                f"quarantine {from_tick}-{to_tick}: not an interval of ticks; from < to, from >= 0"
            )
        body = {"from": from_tick, "to": to_tick, "reasons": list(reasons), "at": _now()}
        write_json(self._path(from_tick, to_tick), body)

    def intervals(self) -> list[dict[str, Any]]:
        """All refused intervals by start: `from`, `to`, `reasons`, `at` (ISO time)."""
        found = [_read(path) for path in self._folder.glob("*-*.json")]
        return sorted(found, key=lambda body: (body["from"], body["to"]))

    def ever(self) -> list[dict[str, Any]]:
        """All intervals that were ever refused, released ones too, as `intervals` gives them."""
        released = [_read(path) for path in (self._folder / "released").glob("*-*.json")]
        return sorted([*self.intervals(), *released], key=lambda body: (body["from"], body["to"]))

    def release(self, from_tick: int, to_tick: int) -> None:
        """Let an interval be learned after all. Raises `InputError` when it is not there."""
        path = self._path(from_tick, to_tick)
        if not path.is_file():
            known = ", ".join(f"{b['from']}-{b['to']}" for b in self.intervals()) or "none"
            raise InputError(
                f"quarantine {from_tick}-{to_tick}: no such interval; quarantined are: {known}"
            )
        write_json(self._folder / "released" / path.name, {**_read(path), "released_at": _now()})
        path.unlink(missing_ok=True)

    def _path(self, from_tick: int, to_tick: int) -> Path:
        return self._folder / f"{from_tick}-{to_tick}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise IntegrityError(f"{path}: not readable ({problem}); restore it") from problem
    return body


def _now() -> str:
    return datetime.now(UTC).isoformat()
