"""Refused windows of ticks, with their reasons; a person can release them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.atomic import write_json, write_text
from headrace.errors import InputError, IntegrityError


class Quarantine:
    """Intervals of ticks `[from, to)` of one line that training leaves out.

    One file for each interval: `quarantine/<from>-<to>.json`; a released one moves to
    `quarantine/released/`, and one that was dropped stays, for good. `quarantine/rows/` holds rows
    that broke a rule, one JSON object a line.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "quarantine"

    def add(
        self,
        from_tick: int,
        to_tick: int,
        reasons: Sequence[str],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Refuse ticks `[from_tick, to_tick)`; adding the same interval again keeps one.

        rows: some that broke a rule, for whoever has to judge the window.
        """
        if not 0 <= from_tick < to_tick:
            raise InputError(
                f"quarantine {from_tick}-{to_tick}: not an interval of ticks; from < to, from >= 0"
            )
        body = {"from": from_tick, "to": to_tick, "reasons": list(reasons), "at": _now()}
        if rows:
            lines = "".join(json.dumps(dict(row), default=str) + "\n" for row in rows)
            write_text(self._rows(from_tick, to_tick), lines)
        write_json(self._path(from_tick, to_tick), body)

    def show(self, from_tick: int, to_tick: int) -> dict[str, Any]:
        """One refused interval with the rows that were kept of it (`rows`) and the page of Great
        Expectations about it (`docs`, None without one). Raises `InputError`.
        """
        body, rows = _read(self._known(from_tick, to_tick)), self._rows(from_tick, to_tick)
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
        docs = self._folder / "docs" / f"{from_tick}-{to_tick}" / "index.html"
        told = {"rows": [json.loads(line) for line in lines]}
        return {**body, **told, "docs": str(docs) if docs.is_file() else None}

    def drop(self, from_tick: int, to_tick: int) -> None:
        """Give an interval up: it is never learned, and nobody needs to look at it any more.

        Raises `InputError` when it is not there.
        """
        path = self._known(from_tick, to_tick)
        write_json(path, {**_read(path), "dropped_at": _now()})
        self._rows(from_tick, to_tick).unlink(missing_ok=True)

    def intervals(self) -> list[dict[str, Any]]:
        """All refused intervals by start: `from`, `to`, `reasons`, `at` (ISO time)."""
        found = [_read(path) for path in self._folder.glob("*-*.json")]
        return sorted(found, key=lambda body: (body["from"], body["to"]))

    def ever(self) -> list[dict[str, Any]]:
        """All intervals that were ever refused, released ones too, as `intervals` gives them."""
        released = [_read(path) for path in (self._folder / "released").glob("*-*.json")]
        return sorted([*self.intervals(), *released], key=lambda body: (body["from"], body["to"]))

    def release(self, from_tick: int, to_tick: int) -> None:
        """Let an interval be learned after all. Raises `InputError` when it is not there, or was
        dropped.
        """
        path = self._known(from_tick, to_tick)
        if "dropped_at" in _read(path):
            raise InputError(
                f"quarantine {from_tick}-{to_tick}: was dropped, which is for good; "
                "release intervals that are not"
            )
        write_json(self._folder / "released" / path.name, {**_read(path), "released_at": _now()})
        path.unlink(missing_ok=True)

    def _known(self, from_tick: int, to_tick: int) -> Path:
        path = self._path(from_tick, to_tick)
        if not path.is_file():
            known = ", ".join(f"{b['from']}-{b['to']}" for b in self.intervals()) or "none"
            raise InputError(
                f"quarantine {from_tick}-{to_tick}: no such interval; quarantined are: {known}"
            )
        return path

    def _rows(self, from_tick: int, to_tick: int) -> Path:
        return self._folder / "rows" / f"{from_tick}-{to_tick}.jsonl"

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
