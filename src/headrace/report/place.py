"""Where reports are kept; light, because Airflow asks too."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from headrace.events import stamp
from headrace.settings import Settings

FOLDER: Final = "reports"


def report_path(settings: Settings, line: str, from_us: int, to_us: int) -> Path:
    """The page of an interval in the line's home; the interval is its name."""
    return settings.line_home(line) / FOLDER / f"{stamp(from_us)}-{stamp(to_us)}.html"
