"""`headrace cases`: the worst answers of a line, for people to label, and what they say of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.errors import InputError

cases_app = typer.Typer(
    no_args_is_help=True, help="The worst answers of a line, and labels that people corrected."
)
_DAY_US = 86_400_000_000
_SHOWN = 5


@cases_app.command("export")
def cases_export(  # noqa: PLR0917
    since: Annotated[
        str | None, typer.Option("--from", help="Start, ISO 8601; default: a day before the end.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="End; default: now.")] = None,
    most: Annotated[
        int, typer.Option(min=1, max=1000, help="Of each slice: clicked rows, and others.")
    ] = 10,
    file: Annotated[
        Path | None,
        typer.Option("--output", help="Default: cases/<from>-<to>.csv in the line's home."),
    ] = None,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Write the rows whose label the model expected least, overall and by slice, as CSV.

    Fill in corrected_label with 0 or 1 where you know better (or just as well) and import it.
    Rows that were judged before are left out.
    """
    from headrace.atomic import check_writable, write_text
    from headrace.cases import CaseBook, sheet
    from headrace.events import moment, stamp
    from headrace.report.answered import interval
    from headrace.report.worst import listed, worst

    settings, spec = open_line(line)
    home = settings.line_home(spec.line)
    to_us = int(time.time()) * 1_000_000 if until is None else moment("--to", until)
    from_us = to_us - _DAY_US if since is None else moment("--from", since)
    # named by the interval, so that no export is written over labels of another
    path = file or home / "cases" / f"{stamp(from_us)}-{stamp(to_us)}.csv"
    check_writable(path)
    about = interval(settings, spec, from_us, to_us)
    judged = CaseBook(spec, home).judged()["impression_offset"]
    cases = listed(worst(spec, about, most, judged))
    write_text(path, sheet.written(sheet.columns_of(spec), cases))
    if as_json:
        show(cases)
    else:
        out.print(f"{len(cases)} cases: {path}", highlight=False, soft_wrap=True)


@cases_app.command("import")
def cases_import(
    file: Annotated[Path, typer.Argument(help="A sheet of `cases export`, filled in.")],
    weight: Annotated[
        float | None, typer.Option(help="What a corrected row weighs, 1 to 100; default: 10.")
    ] = None,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Take corrected labels: the next trainings learn them as rows of that weight.

    Rows that are wrong are kept aside in <file>.refused.csv, each with its reason; the others are
    taken. Exit 3 where any was refused.
    """
    from headrace.cases import WEIGHT, take

    settings, spec = open_line(line)
    taken = take(settings, spec, file, WEIGHT if weight is None else weight)
    told = f"{taken.changed} corrected, {taken.confirmed} confirmed, {taken.open} left open"
    if as_json:
        show(taken)
    else:
        when = "" if taken.tick is None else f"; learned with tick {taken.tick}"
        out.print(f"{line}: {told}{when}", highlight=False)
    if taken.refused:
        reasons = "; ".join(taken.reasons[:_SHOWN])
        raise InputError(
            f"{taken.refused} rows of {file} were refused ({reasons}); repair and import "
            f"{taken.refusals}; of the others {told}"
        )


@cases_app.command("list")
def cases_list(line: LineName = "coupons", as_json: AsJson = False) -> None:
    """List what was imported: corrected and confirmed rows, and whether the champion knows them."""
    from headrace.cases import CaseBook
    from headrace.line import LineStore

    settings, spec = open_line(line)
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    champion = store.champion()
    known_to = 0 if champion is None else store.get(champion.version).to_tick
    told: list[dict[str, Any]] = []
    for batch in CaseBook(spec, settings.line_home(spec.line)).batches():
        changed = batch.changed.num_rows
        told.append(
            {
                "batch": batch.name,
                "tick": batch.tick,
                "judged_at": batch.rows["judged_at"][0].as_py().isoformat(timespec="seconds"),
                "corrected": changed,
                "confirmed": batch.rows.num_rows - changed,
                "weight": batch.rows["case_weight"][0].as_py(),
                "learned": batch.tick < known_to,
            }
        )
    if as_json:
        show(told)
        return
    table = Table("batch", "tick", "judged at", "corrected", "confirmed", "weight", "learned")
    for each in told:
        shown = {
            **each,
            "weight": f"{each['weight']:g}",
            "learned": "yes" if each["learned"] else "not yet",
        }
        table.add_row(*(str(value) for value in shown.values()))
    out.print(table)
