"""`headrace up`, `down`, `status`, `demo`: the stack of this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.settings import load_settings


def demo(
    minutes: Annotated[float, typer.Option(help="Minutes of traffic.")] = 4.5,
    keep: Annotated[bool, typer.Option(help="Leave the stack's files in out/demo/stack.")] = True,
) -> None:
    """Run the whole loop once on this machine and write out/demo/report.html."""
    from headrace.demo.run import run

    raise typer.Exit(run(load_settings(), minutes=minutes, keep=keep))


def up(
    line: LineName = "coupons",
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Start from simulated history and send traffic.")
    ] = False,
) -> None:
    """Start the stack (collector, scoring server, Airflow) and leave it running."""
    from headrace import stack

    settings, spec = open_line(line)
    if not simulate:
        stack.up(settings, spec.line)
        return
    from headrace.demo.bootstrap import Bootstrap

    bootstrap = Bootstrap(spec, stack.write_line, traffic=True)
    stack.up(settings, spec.line, service_list=bootstrap, say=stack.write_line)


def down() -> None:
    """Stop the stack and every process that belongs to it; also one that a demo left behind."""
    from headrace import stack
    from headrace.demo.run import demo_settings

    settings = load_settings()
    demo_home = demo_settings(settings)
    if stack.status(demo_home)["running"]:
        stack.down(demo_home)
    stack.down(settings)


def status(as_json: AsJson = False) -> None:
    """Say what runs, since when, and how stale each line is."""
    from headrace import stack

    state = stack.status(load_settings())
    if as_json:
        show(state)
        return
    if not state["running"]:
        out.print("nothing runs; start it with `headrace up`")
        return
    table = Table("service", "state", "since", "pid", "address")
    columns = ("name", "state", "since", "pid", "url")
    for service in state["services"]:
        table.add_row(*(str(service.get(key) or "") for key in columns))
    out.print(table)
    if state.get("champion"):
        told = f"{state['champion']}, whose newest event is {state['staleness_s']:.0f} s old"
        out.print(f"{state['line']}: {told}", highlight=False)
    else:
        out.print(f"{state['line'] or 'no line'}: no champion yet", highlight=False)
