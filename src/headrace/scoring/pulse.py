"""How the follower of a log tells that it is alive, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from headrace.atomic import write_json
from headrace.scoring.impressions import Of

BEAT_S: Final = 2.0
_METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "rows": ("rows", "Rows scored since the process started."),
    "behind": ("behind_records", "Records of the log that could be scored and are not yet."),
    "offset": ("offset", "Offset of the log up to which records were looked at."),
    "newest_at": ("newest_timestamp_seconds", "When the newest scored row was asked; 0 at first."),
    "look_s": ("look_seconds", "Duration of the newest look."),
}
"""Of each figure of a `Standing`: the name of its gauge, and what it is."""


@dataclass(frozen=True)
class Standing:
    """How far a follower is. `version`: what scored its newest rows, None before any."""

    rows: int = 0
    behind: int = 0
    offset: int = 0
    newest_at: float = 0.0
    look_s: float = 0.0
    version: str | None = None


class Pulse:
    """Writes `<home>/scores/<log>.json`, and `.prom` for the textfile collector of Prometheus'
    node exporter, every `BEAT_S` at most and whenever the problem is another one.
    """

    def __init__(self, line: str, home: Path, which: Of) -> None:
        self._line, self._which, self._beat = line, which, beat(home, which)
        self._due, self._told = 0.0, ""

    def tell(self, standing: Standing, problem: str, *, now: bool = False) -> None:
        """Say how it stands, if it is time or `now`."""
        if not now and problem == self._told and time.monotonic() < self._due:
            return
        self._due, self._told = time.monotonic() + BEAT_S, problem
        body = {"at": datetime.now(UTC).isoformat(), "problem": problem or None}
        write_json(self._beat, body | asdict(standing))
        self._metrics(standing, failing=bool(problem))

    def _metrics(self, standing: Standing, *, failing: bool) -> None:
        from headrace.meters import write_figures

        figures = {
            name: (text, float(getattr(standing, figure)))
            for figure, (name, text) in _METRICS.items()
        }
        figures["failing"] = ("1 while looks fail, else 0.", float(failing))
        figures["last_look_timestamp_seconds"] = ("When the newest look ended.", time.time())
        labels = {"line": self._line, "log": self._which}
        write_figures(self._beat.with_suffix(".prom"), "headrace_nearline", labels, figures)


def beat(home: Path, which: Of) -> Path:
    """Where the follower of a log says that it is alive."""
    return home / "scores" / f"{which}.json"
