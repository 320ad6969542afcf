"""`headrace features`: what there is, what each means, what it holds."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.errors import DeclarationError
from headrace.settings import load_lines, load_settings

features_app = typer.Typer(no_args_is_help=True, help="The features of all lines, in Feast.")

Name = Annotated[str, typer.Argument(help="A feature, or a feature view.")]
Key = Annotated[
    list[str] | None, typer.Option("--key", help="COLUMN=VALUE, read online now; repeatable.")
]


@features_app.command("list")
def features_list(as_json: AsJson = False) -> None:
    """List the features of all lines: view, entity, aggregate, window, TTL, service."""
    from headrace.catalog import catalog

    lines = load_lines(load_settings().lines_dir)
    found = catalog(lines)
    if as_json:
        show([vars(one) | {"service": lines[one.line].feature_service} for one in found])
        return
    table = Table("feature", "kind", "entity", "aggregate", "window", "ttl", "view", "service")
    for one in found:
        table.add_row(
            one.name, one.kind, ", ".join(one.entity), one.aggregate, one.window or "",
            one.ttl or "", one.view, lines[one.line].feature_service,
        )  # fmt: skip
    out.print(table)


@features_app.command("describe")
def features_describe(name: Name, as_json: AsJson = False) -> None:
    """Say what a feature is, where it is computed, who reads it and what its values look like."""
    from headrace.catalog import describe, find

    settings = load_settings()
    lines = load_lines(settings.lines_dir)
    found = [describe(settings, lines[one.line], one) for one in find(lines, name)]
    if as_json:
        show(found)
        return
    for one in found:
        table = Table(title=f"{one['line']}: {one['name']}", show_header=False, min_width=60)
        table.add_row("is", one["meaning"])
        table.add_row("entity", ", ".join(one["entity"]) or "the request")
        table.add_row("computed", one["computed"])
        table.add_row("view, service", f"{one['view']}, {one['service']}")
        table.add_row("read by", ", ".join(one["read_by"]) or "nobody")
        table.add_row("expires", one["ttl"] or "never")
        for figure, value in (one["statistics"] or {"rows": "none yet"}).items():
            table.add_row(figure.replace("_", " "), _shown(value))
        out.print(table)


@features_app.command("sample")
def features_sample(
    name: Annotated[str | None, typer.Argument(help="A feature or view; default is all.")] = None,
    line: LineName = "coupons",
    key: Key = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Newest rows of the parts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read values: online now (`--key user_id=u12`), or the newest offline rows (`--rows 5`)."""
    from headrace.catalog import find, newest_rows, online

    settings, spec = open_line(line)
    if bool(key) == (rows is not None):
        raise DeclarationError("give either --key COLUMN=VALUE, once or more, or --rows N")
    asked = find({line: spec}, name) if name else []
    if key:
        values = online(settings, spec, dict(_pair(text) for text in key))
        if asked:
            wanted = {one.name for one in asked} | {f"{one.view}__at" for one in asked}
            values = {name: value for name, value in values.items() if name in wanted}
        if not values:
            raise DeclarationError(
                f"{', '.join(key)} does not suffice; `headrace features describe` says what "
                "each feature is made of: give its columns by --key"
            )
        if as_json:
            show(values)
        else:
            told = [{"feature": name, "value": value} for name, value in values.items()]
            _print_rows(f"{line}, online now", told)
        return
    views = dict.fromkeys(one.view for one in asked) if asked else spec.views
    found = {view: newest_rows(settings, spec, view, rows or 0).to_pylist() for view in views}
    if as_json:
        show(found)
        return
    for view, some in found.items():
        _print_rows(f"{line}: {view}, newest first", some)


def _pair(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise DeclarationError(f"--key {text!r} is not COLUMN=VALUE; write --key user_id=u12")
    return column, value


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=title) if rows else Table(title=f"{title}: nothing")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    out.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
