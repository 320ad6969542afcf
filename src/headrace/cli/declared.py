"""What the YAML of lines says: shown, and registered with Feast."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.settings import load_lines, load_settings


def apply() -> None:
    """Register every line's entities, views and feature service with Feast."""
    from headrace.store import Store

    Store(load_settings()).apply()


def lines(as_json: AsJson = False) -> None:
    """List the declared lines; a wrong one is named with its key and the remedy."""
    settings = load_settings()
    declared = load_lines(settings.lines_dir)
    if as_json:
        show({name: spec.model_dump(mode="json") for name, spec in declared.items()})
        return
    table = Table("line", "feature service", "source", "label", "windows", "model")
    for name, spec in declared.items():
        table.add_row(
            name, spec.feature_service, spec.source.kind, spec.label.engagement,
            str(len(spec.windows)), spec.model.family,
        )  # fmt: skip
    out.print(table)


def expectations(line: LineName = "coupons") -> None:
    """Print the data gate's demands on a window, as lines/LINE/expectations/ may hold them."""
    import yaml

    from headrace import rules

    _, spec = open_line(line)
    for rule in rules.declared(spec):
        told = {"kind": rule.kind, "column": rule.column, "low": rule.low, "high": rule.high}
        shown: dict[str, Any] = {n: value for n, value in told.items() if value not in (None, "")}
        shown |= {"values": list(rule.values)} if rule.values else {}
        text = yaml.safe_dump([shown], default_flow_style=True, sort_keys=False, width=1000)
        typer.echo(f"- {text.strip()[1:-1]}")
