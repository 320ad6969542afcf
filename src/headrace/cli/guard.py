"""`headrace guard`: watch the champion while it serves."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show, until_signal


def guard(
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Watch the champion's log loss, calibration and scores; roll back and tell on a breach."""
    from headrace import guard as guarding

    settings, spec = open_line(line)
    if not once:
        until_signal(lambda stop: guarding.run(settings, spec, stop))
        return
    seen = guarding.Guard(settings, spec).once()
    guarding.write(settings, spec.line, seen)
    if as_json:
        show(seen)
        return
    if seen.watched is None:
        out.print(f"{line}: no champion yet")
        return
    table = Table("figure", "value", title=f"{line}: {seen.champion} since its window began")
    for name, value in dataclasses.asdict(seen.watched).items():
        if name != "breaches":
            table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    out.print(table)
    for breach in seen.watched.breaches:
        out.print(f"  {breach}", highlight=False, markup=False)
    out.print(f"{seen.action}: {seen.why}" if seen.why else "nothing to do", markup=False)
