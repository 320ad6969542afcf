"""`headrace report`: what a line did over an interval, as one page; `headrace results`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson, LineName, open_line, out, show


def report(
    since: Annotated[
        str | None, typer.Option("--from", help="Start, ISO 8601; default: an hour before the end.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="End; default: now.")] = None,
    file: Annotated[
        Path | None, typer.Option("--output", help="Default: report.html in the line's home.")
    ] = None,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page: staleness, quality, worst answers, gates, alarms, drift,
    parity, cost.
    """
    from headrace.events import moment
    from headrace.report.written import write

    settings, spec = open_line(line)
    path = file or settings.line_home(spec.line) / "report.html"
    to_us = time.time_ns() // 1_000 if until is None else moment("--to", until)
    from_us = to_us - 3_600_000_000 if since is None else moment("--from", since)
    told = write(settings, spec, from_us, to_us, path)
    if as_json:
        show(json.loads(json.dumps(told, default=str)))
    else:
        out.print(f"report: {path}", highlight=False, soft_wrap=True)


def results() -> None:
    """Renew docs/results.md from what demo, replay and bench left in out/."""
    from headrace.results import write
    from headrace.settings import PROJECT

    document = PROJECT / "docs" / "results.md"
    out.print(f"{document}: renewed {', '.join(write(document, PROJECT / 'out')) or 'nothing'}")
