"""Who moves a line at this moment: the learner's heartbeat, and the hold that makes it wait.

Both are files in the line's home. The champion's compare-and-swap decides who wins; these only
keep writers from working for nothing: the cycle leaves new samples to a learner that is alive,
and a learner lets the champion be while a full retrain is compared with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from headrace.atomic import write_json

ALIVE_S: Final = 15.0
"""A heartbeat older than this is of a learner that died; the cycle takes over."""


def beat(home: Path, body: dict[str, Any]) -> None:
    """Say that the learner is alive, and how it stands."""
    write_json(home / "learner" / "beat.json", body | {"at_us": _now_us()})


def alive(home: Path) -> bool:
    """Whether a learner beat within `ALIVE_S`."""
    body = heard(home)
    return body is not None and 0 <= _now_us() - body["at_us"] <= ALIVE_S * 1e6


def heard(home: Path) -> dict[str, Any] | None:
    """The newest heartbeat, None where there never was one (or it is torn)."""
    return _read(home / "learner" / "beat.json")


def silence(home: Path) -> None:
    """The learner has ended in good order: nobody waits for it."""
    (home / "learner" / "beat.json").unlink(missing_ok=True)


def hold(home: Path, why: str, seconds: float) -> None:
    """Ask the learner to leave the champion where it is for so long at most."""
    body = {"why": why, "until_us": _now_us() + int(seconds * 1e6)}
    write_json(home / "learner" / "hold.json", body)


@contextmanager
def holding(home: Path, why: str, seconds: float) -> Iterator[None]:
    """Hold a living learner while the block runs, and no longer than that."""
    if not alive(home):
        yield
        return
    hold(home, why, seconds)
    try:
        yield
    finally:
        release(home)


def release(home: Path) -> None:
    """Let the learner go on."""
    (home / "learner" / "hold.json").unlink(missing_ok=True)


def held(home: Path) -> str | None:
    """Why the learner has to wait, None when it need not."""
    if (why := frozen(home)) is not None:
        return why
    body = _read(home / "learner" / "hold.json")
    return str(body["why"]) if body is not None and _now_us() < body["until_us"] else None


def freeze(home: Path, why: str) -> None:
    """Let nothing be learned into the line until somebody thaws it."""
    write_json(home / "learner" / "frozen.json", {"why": why, "at_us": _now_us()})


def frozen(home: Path) -> str | None:
    """Why the line is frozen, None when it is not."""
    body = _read(home / "learner" / "frozen.json")
    return None if body is None else str(body["why"])


def thaw(home: Path) -> None:
    """Let the line learn again."""
    (home / "learner" / "frozen.json").unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return body


def _now_us() -> int:
    return time.time_ns() // 1_000
