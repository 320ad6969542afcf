"""The command line: one verb for each flow, imports inside the verbs so that `--help` is quick.

Exit codes are those of `headrace.errors`; 2 for a wrong option, 130 after Ctrl-C. People read
tables, `--json` gives machines the same values.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.cases import cases_app
from headrace.cli.chaos import chaos
from headrace.cli.drift import drift
from headrace.cli.drill import drill
from headrace.cli.export import export
from headrace.cli.features import features_app
from headrace.cli.guard import guard
from headrace.cli.line import line_app, quarantine_app
from headrace.cli.options import (
    AsJson,
    LineName,
    LinePath,
    open_line,
    out,
    progress,
    show,
    until_signal,
)
from headrace.cli.proof import parity
from headrace.cli.race import race_app
from headrace.cli.report import report
from headrace.cli.score import score_batch, score_log
from headrace.cli.spark import backfill, stream
from headrace.cli.train import train_app
from headrace.errors import GateRejected, HeadraceError, IntegrityError
from headrace.settings import load_line, load_lines, load_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(parity)
app.command()(guard)
app.command()(drill)
app.command()(drift)
app.command()(report)
app.add_typer(train_app, name="train")
app.add_typer(line_app, name="line")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(features_app, name="features")
app.add_typer(race_app, name="race")
app.add_typer(cases_app, name="cases")
app.command()(backfill)
app.command()(stream)
app.command()(export)
app.command()(chaos)
app.command()(score_batch)
app.command()(score_log)

# What no verb can foresee, and its remedy; any other OSError is a fault of this program.
_NO_SPACE = "free some space, or set HEADRACE_HOME to another disk, and run again"
_NO_ACCESS = "give a path that this user may write, or set HEADRACE_HOME to one"
_OF_THE_MACHINE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EROFS: _NO_ACCESS,
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.ENOTDIR: _NO_ACCESS,
}


def main() -> None:
    """Run the command line; a user's mistake ends in one clear line and an exit code."""
    try:
        code = app(standalone_mode=False)  # what a verb gave to typer.Exit, 130 after Ctrl-C
    except HeadraceError as problem:
        _end(str(problem), problem.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end("interrupted", 130)
    except OSError as problem:
        if problem.errno not in _OF_THE_MACHINE:
            raise
        where = f" ({problem.filename})" if problem.filename else ""
        _end(f"{os.strerror(problem.errno)}{where}; {_OF_THE_MACHINE[problem.errno]}", 4)
    except Exception as problem:
        if not hasattr(problem, "format_message"):  # click's usage errors have it
            raise
        text = problem.format_message()
        if text.startswith("Usage:"):  # a group without a verb
            sys.stderr.write(f"{text}\n")
            sys.exit(2)
        _end(f"{text.rstrip('.')}; see `headrace --help`", 2)
    else:
        sys.exit(code)


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"headrace: {message}\n")
    sys.exit(code)


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Minutes of traffic.")] = 4.5,
    keep: Annotated[bool, typer.Option(help="Leave the stack's files in out/demo/stack.")] = True,
) -> None:
    """Run the whole loop once on this machine and write out/demo/report.html."""
    from headrace.demo.run import run

    raise typer.Exit(run(load_settings(), minutes=minutes, keep=keep))


@app.command()
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


@app.command()
def down() -> None:
    """Stop the stack and every process that belongs to it; also one that a demo left behind."""
    from headrace import stack
    from headrace.demo.run import demo_settings

    settings = load_settings()
    demo_home = demo_settings(settings)
    if stack.status(demo_home)["running"]:
        stack.down(demo_home)
    stack.down(settings)


@app.command()
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


@app.command()
def apply() -> None:
    """Register every line's entities, views and feature service with Feast."""
    from headrace.store import Store

    Store(load_settings()).apply()


@app.command()
def ingest(line: LineName = "coupons") -> None:
    """Collect events over HTTP and turn them into features and samples, tick by tick."""
    from headrace.ingest.service import run

    settings, spec = open_line(line)
    until_signal(lambda stop: run(settings, spec, stop))


@app.command()
def serve(line: LineName = "coupons") -> None:
    """Answer scoring requests with the line's champion, swapping versions while serving."""
    from headrace.serving.app import run

    settings, spec = open_line(line)
    run(settings, spec)


@app.command()
def learn(line: LineName = "coupons") -> None:
    """Learn new samples each second or few and promote what the gates pass, until stopped."""
    from headrace.learner import run

    settings, spec = open_line(line)
    until_signal(lambda stop: run(settings, spec, stop))


@app.command()
def simulate(
    line: LineName = "coupons",
    minutes: Annotated[float, typer.Option(help="How long; 0 is until stopped.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulated world.")] = 7,
) -> None:
    """Send a simulated coupon campaign to the running stack, closing the loop."""
    from headrace.simulate.campaign import SimulatorConfig
    from headrace.simulate.campaign import run as simulate_run

    settings, spec = open_line(line)

    def limited(stop: threading.Event) -> None:
        if minutes > 0:
            threading.Timer(minutes * 60, stop.set).start()
        simulate_run(settings, spec, SimulatorConfig(seed=seed), stop)

    until_signal(limited)


@app.command()
def run(
    pipeline: Annotated[
        str, typer.Argument(help="incremental_train, full_train or full_train_gpu.")
    ],
    line: LineName = "coupons",
    workers: Annotated[
        int, typer.Option(help="Of a full training: processes that share each batch.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Run one Kubeflow pipeline for a line, here or on the configured endpoint."""
    from headrace.launch import run_pipeline

    settings, spec = open_line(line)
    result = run_pipeline(settings, pipeline, spec.line, workers=workers)
    if as_json:
        show(result)
    else:
        out.print(f"{pipeline} {spec.line}: {result.outcome} {result.version or ''}")
        for reason in result.reasons:
            out.print(f"  {reason}")
    if result.outcome == "rejected":
        raise GateRejected(f"{pipeline} was rejected: {'; '.join(result.reasons)}")
    if result.outcome == "failed":
        raise HeadraceError(f"{pipeline} failed: {'; '.join(result.reasons)}")


@app.command()
def replay(
    line: LinePath,
    data: Annotated[Path, typer.Option(help="Folder that the line's paths start from.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Stream a real event file through kernel, samples, trainer and gates, and compare policies."""
    from headrace.atomic import check_writable, write_text
    from headrace.replay.stream import replay as replay_line

    spec = load_line(line)
    if json_file is not None:
        check_writable(json_file)
    with progress(f"replay {spec.line}") as advance:
        result = replay_line(spec, data, advance)
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=2) + "\n")
    table = Table(
        "policy", "log loss", "AUC", "calibration", title=f"{spec.line}: {result['rows']}"
    )
    for name, policy in result["policies"].items():
        figures = (policy[key] for key in ("logloss", "auc", "calibration"))
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in figures))
    out.print(table)
    out.print(_counted(result["counts"]), highlight=False, markup=False)
    proof = result["parity"]
    told = (
        f"{proof['rows']:,} vectors computed again in batch, {proof['mismatches']:,} values differ"
    )
    out.print(told, highlight=False)
    if result.get("explanation"):
        out.print(result["explanation"])
    if proof["mismatches"]:
        raise IntegrityError(f"{told}; the first: {proof['first'][:3]}")


@app.command()
def account(line: LineName = "coupons") -> None:
    """Count every event of the log by its fate; the counts must add up (JSON)."""
    from headrace.account import account as count

    settings, spec = open_line(line)
    show(count(settings, spec))


@app.command()
def results() -> None:
    """Renew docs/results.md from what demo, replay and bench left in out/."""
    from headrace.results import write
    from headrace.settings import PROJECT

    document = PROJECT / "docs" / "results.md"
    out.print(f"{document}: renewed {', '.join(write(document, PROJECT / 'out')) or 'nothing'}")


@app.command()
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


@app.command()
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


def _counted(counts: dict[str, Any]) -> str:
    """What was odd about the files' rows (the JSON has all counts), and the first bad rows."""
    shown = {name: counts[name] for name in ("duplicates", "unsorted", "malformed", "unmatched")}
    shown["values of a wrong type"] = sum(counts["unreadable_values"].values())
    told = ", ".join(f"{count:,} {name}" for name, count in shown.items())
    return "\n  ".join([f"{counts['rows']:,} rows: {told}", *counts["malformed_first"]])
