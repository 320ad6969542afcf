"""What the verbs share: options, where the line is, how values are shown."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from headrace.declaration import LineSpec
from headrace.settings import Settings, find_line, load_settings

out = Console()

LineName = Annotated[str, typer.Option("--line", help="Name of a line in lines/.")]
LinePath = Annotated[Path, typer.Option("--line", help="A line's YAML file.")]
Master = Annotated[str, typer.Option(help="Spark master: local[N], spark://…, yarn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def open_line(line: str) -> tuple[Settings, LineSpec]:
    """The settings and the declared line of that name."""
    settings = load_settings()
    return settings, find_line(settings, line)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on the terminal, none elsewhere; call it with what is done, of how much, and a note."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, description=note)

        yield advance


def until_signal(run: Callable[[threading.Event], None]) -> None:
    """Call `run` with an event that SIGTERM and Ctrl-C set, so that it ends in good order."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(stop)


def show(value: Any) -> None:
    """Print a value, or a dataclass, as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
