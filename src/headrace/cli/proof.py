"""What can be proven: `headrace parity` of what was served, `headrace account` of every event."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.errors import InputError

if TYPE_CHECKING:
    from headrace.declaration import LineSpec
    from headrace.parity import ParityReport
    from headrace.settings import Settings

Last = Annotated[int | None, typer.Option(min=1, help="Only so many of the newest served rows.")]
Since = Annotated[
    str | None, typer.Option(help="Only rows served since: 10m, or 2026-05-01T12:00:00+02:00.")
]
FromOffset = Annotated[
    int | None, typer.Option(min=0, help="Only rows from this offset of the served log on.")
]


def parity(
    line: LineName = "coupons",
    last: Last = None,
    since: Since = None,
    from_offset: FromOffset = None,
    as_json: AsJson = False,
) -> None:
    """Recompute served rows from the event log and through Feast's point-in-time join.

    Everything is compared bit by bit; each mismatch is named with its first cause. Exit 6 on
    any. The JSON holds all mismatches, the table the first.
    """
    from headrace.errors import IntegrityError
    from headrace.parity import SHOWN, check

    settings, spec = open_line(line)
    start = _start(settings, spec, last, since, from_offset)
    report = check(settings, spec, from_offset=start, shown=None if as_json else SHOWN)
    if as_json:
        show(report)
    else:
        _print(spec.line, report)
    if report.mismatches:
        causes = ", ".join(f"{count} {cause}" for cause, count in report.by_cause.items())
        raise IntegrityError(f"{report.mismatches} mismatches in {report.rows} rows: {causes}")


def _start(
    settings: Settings, spec: LineSpec, last: int | None, since: str | None, offset: int | None
) -> int:
    from headrace.parity import offset_of, offset_of_last

    if sum(option is not None for option in (last, since, offset)) > 1:
        raise InputError("--last, --since and --from-offset each say where to start; give one")
    if last is not None:
        return offset_of_last(settings, spec, last)
    if since is not None:
        return offset_of(settings, spec, _moment_us(since))
    return offset or 0


def _moment_us(text: str) -> int:
    """A duration before now, or a time with its zone."""
    from headrace.declaration.base import parse_duration_us
    from headrace.events import micros

    try:
        return micros(datetime.now(UTC)) - parse_duration_us(text)
    except ValueError:
        pass  # a time, then
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InputError(
            f"--since {text!r} is neither a duration nor a time with a zone; write 10m or "
            "2026-05-01T12:00:00+02:00"
        )
    return micros(moment)


def _print(line: str, report: ParityReport) -> None:
    out.print(f"{line}: {report.rows:,} served rows, {report.mismatches:,} mismatches")
    if report.defaults:
        out.print(
            f"{report.defaults:,} more were answered with defaults and hold nothing to compare"
        )
    if not report.mismatches:
        return
    table = Table("feature", "impression", "request", "offset", "served", "log", "history", "cause")
    for one in report.first:
        cells = (one.impression_id, one.request_id, one.offset, one.served, one.log, one.history)
        table.add_row(one.feature, *(str(cell) for cell in cells), one.cause)
    out.print(table)
    if report.mismatches > len(report.first):
        out.print(f"the first {len(report.first)} of {report.mismatches:,}; --json has all")


def account(line: LineName = "coupons") -> None:
    """Count every event of the log by its fate; the counts must add up (JSON)."""
    from headrace.account import account as count

    settings, spec = open_line(line)
    show(count(settings, spec))
