"""What can be wrong with live traffic on purpose: a file names it for as long as it lasts."""

from __future__ import annotations

from typing import Any, Final

from headrace.atomic import write_text
from headrace.errors import InputError
from headrace.settings import Settings

FLIPPED: Final = "flipped labels"
STUCK: Final = "stuck feature"
UNIT: Final = "unit change"
DUPLICATE: Final = "duplicate burst"
STOP: Final = "source stop"
POISONS: Final = (FLIPPED, STUCK, UNIT, DUPLICATE, STOP)
"""Called as `headrace drill` calls the same on simulated time."""


class PoisonSwitch:
    """`<line home>/truth/poison`, which a running simulator reads at each request."""

    def __init__(self, settings: Settings, line: str) -> None:
        self._path = settings.line_home(line) / "truth" / "poison"

    def on(self, poison: str) -> None:
        """Spoil traffic from now on. Raises `InputError` for an unknown poison."""
        if poison not in POISONS:
            raise InputError(f"{poison!r}: no such poison; there are: {', '.join(POISONS)}")
        write_text(self._path, poison)

    def off(self) -> None:
        """Traffic is sound again; harmless when it was."""
        self._path.unlink(missing_ok=True)

    def read(self) -> str | None:
        """The poison that is on, if any."""
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None


def spoil_candidate(candidate: dict[str, Any], poison: str | None) -> dict[str, Any]:
    """What the application says of a coupon."""
    if poison == UNIT:  # percent in place of a share
        return candidate | {"discount": 100 * candidate["discount"]}
    return candidate | {"discount": 0.3} if poison == STUCK else candidate


def copies(poison: str | None) -> int:
    """How often each event is sent."""
    return {DUPLICATE: 4, STOP: 0}.get(poison or "", 1)
