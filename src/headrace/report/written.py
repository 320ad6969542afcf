"""The report of a line and an interval, measured and written as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from headrace import parity
from headrace.atomic import check_writable, write_text
from headrace.declaration import LineSpec
from headrace.report import interval
from headrace.report.line_page import page
from headrace.settings import Settings

PARITY_ROWS: Final = 2_000


def write(
    settings: Settings, spec: LineSpec, from_us: int, to_us: int, path: Path
) -> dict[str, Any]:
    """Write the page of `[from_us, to_us)` to `path` and return what it shows.

    Parity is asked of the newest served rows. Raises `InputError` where no tick lies between.
    """
    check_writable(path)
    told = interval.measure(settings, spec, from_us, to_us)
    start = parity.offset_of_last(settings, spec, PARITY_ROWS)
    proof = parity.check(settings, spec, from_offset=start, history="parts")
    told["parity"] = {"rows": proof.rows, "mismatches": proof.mismatches}
    write_text(path, page(told))
    return told
