"""`headrace pipelines`: a line's pipelines in the list of a Kubeflow cluster."""

from __future__ import annotations

import dataclasses

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show

pipelines_app = typer.Typer(
    no_args_is_help=True, help="A line's pipelines in the list of a Kubeflow cluster."
)


@pipelines_app.callback()
def pipelines() -> None:
    """Keeps `upload` a verb of its own."""


@pipelines_app.command()
def upload(line: LineName = "coupons", as_json: AsJson = False) -> None:
    """Upload a line's pipelines to HEADRACE_KFP_ENDPOINT; what is there already stays."""
    from headrace.launch.upload import upload as send

    settings, spec = open_line(line)
    sent = send(settings, spec.line)
    if as_json:
        show([dataclasses.asdict(one) for one in sent])
        return
    table = Table("pipeline", "version", "")
    for one in sent:
        table.add_row(one.name, one.version, "uploaded" if one.fresh else "there already")
    out.print(table)
