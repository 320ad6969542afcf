"""`headrace drill`: poison a line on its own time, and say which gate noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.settings import PROJECT


def drill(  # noqa: PLR0917 -- options, one each
    only: Annotated[
        list[str] | None, typer.Option(help="A drill by its name; again for more. Default: all.")
    ] = None,
    clean: Annotated[int, typer.Option(help="Clean windows that count false alarms.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the simulated world, or of the poisons.")] = 7,
    line: LineName = "coupons",
    data: Annotated[
        Path | None, typer.Option(help="Folder that the paths of a recorded line start from.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Poison a line in many ways, on simulated or recorded time, through the real gates.

    Writes out/drills/LINE.json, from which `headrace results` prints its table.
    """
    from headrace.atomic import check_writable, write_text
    from headrace.drill.run import run

    _, spec = open_line(line)
    path = PROJECT / "out" / "drills" / f"{spec.line}.json"
    check_writable(path)
    say = typer.echo
    told = run(spec, seed, clean, data=data, only=only or (), say=lambda text: say(text, err=True))
    write_text(path, json.dumps(told, indent=2) + "\n")
    if as_json:
        show(told)
    else:
        out.print(_table(told))


def _table(told: dict[str, Any]) -> Table:
    from headrace.replay.results import duration

    table = Table("drill", "caught by", "after", "windows learned", "without gates")
    untouched = told["clean_minutes"]["none"]["logloss"]
    by_drill = {(each["drill"], each["defence"]): each for each in told["drills"]}
    for name in told["what"]:
        full, none = by_drill[name, "all"], by_drill[name, "none"]
        after = (
            "" if full["seconds"] is None else f"{duration(full['seconds'])}, {full['rows']} rows"
        )
        learned = str(full["through"] - full["undone"])
        harm = f"log loss {none['logloss'] - untouched:+.4f}"
        table.add_row(name, full["caught_by"] or "nobody", after, learned, harm)
    return table
