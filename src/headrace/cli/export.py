"""`headrace export`: a version for servers that know no Headrace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show

if TYPE_CHECKING:
    from headrace.export.save import Exported


def export(
    to: Annotated[Path, typer.Option(help="New folder; TensorFlow Serving wants MODEL/NUMBER.")],
    line: LineName = "coupons",
    version: Annotated[str | None, typer.Option(help="Default is the champion.")] = None,
    quantize: Annotated[
        Literal["int8", "float16"] | None, typer.Option(help="Smaller tables; says what it costs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version as a TensorFlow SavedModel: raw request columns in, probability out.

    The graph is compared with the server's model first, on drawn rows and the newest samples.
    """
    from headrace.export.save import export as write

    settings, spec = open_line(line)
    exported = write(settings, spec, to, version, quantize)
    if as_json:
        show(exported)
    else:
        _print(exported)


def _print(exported: Exported) -> None:
    name = exported.quantize or "float32"
    out.print(f"{exported.line} {exported.version}: {exported.path}", highlight=False)
    out.print(
        f"scores as the server's model on {exported.rows_checked:,} rows, "
        f"largest difference {exported.largest_difference:.1g}",
        highlight=False,
    )
    figures = exported.figures
    table = Table("", "MB", "log loss", "AUC")
    sizes = {each: f"{size / 1e6:.2f}" for each, size in exported.bytes.items()}
    table.add_row("trainer's state", sizes["state"], "", "")
    before = ("", "") if figures is None else (figures.logloss, figures.auc)
    table.add_row("float32", sizes["float32"], *map(_four, before))
    if exported.quantize is not None:
        after = ("", "") if figures is None else (figures.exported_logloss, figures.exported_auc)
        table.add_row(name, sizes["exported"], *map(_four, after))
    table.add_row("folder on disk", sizes["disk"], "", "")
    out.print(table)
    if figures is None:
        out.print("no samples yet, so log loss and AUC are not known; ingest some and export again")
    else:
        out.print(f"log loss and AUC on the newest {figures.rows:,} samples", highlight=False)


def _four(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6f}"
