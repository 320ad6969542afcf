"""`headrace drift`: is the line's world still the one that its past shows?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show


def drift(
    act: Annotated[
        bool, typer.Option("--act", help="Raise the alarm, and freeze where the line says so.")
    ] = False,
    thaw: Annotated[bool, typer.Option("--thaw", help="Let a frozen line learn again.")] = False,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Hold the newest window against the rows before it: inputs, scores, label delay, loss."""
    from headrace import drift as drifts
    from headrace import turns

    settings, spec = open_line(line)
    if thaw:
        turns.thaw(settings.line_home(spec.line))
        return
    seen = drifts.look(settings, spec)
    if act:
        drifts.act(settings, spec, seen)
    if as_json:
        show(seen)
        return
    title = f"{line}: {seen.rows} rows against the {seen.reference_rows} before them"
    table = Table("figure", "index (PSI)", "limit", "K-S", title=title)
    for name, each in seen.figures.items():
        table.add_row(name, *("" if each[k] is None else f"{each[k]:.3f}" for k in _SHOWN))
    out.print(table)
    for sentence in [each for kind in seen.drifted.values() for each in kind]:
        out.print(f"  {sentence}", highlight=False, markup=False)
    out.print(f"outcome: {seen.outcome}")


_SHOWN = ("psi", "limit", "ks")
