"""`headrace stream` and `headrace backfill`: the verbs that Spark runs, or may run."""

from __future__ import annotations

import enum
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson, LineName, open_line, out, show, until_signal
from headrace.errors import InputError

Master = Annotated[str, typer.Option(help="Spark master: local[N], spark://…, yarn.")]


class Engine(enum.StrEnum):
    """Where a backfill is computed."""

    local = "local"
    spark = "spark"


def stream(
    source: Annotated[
        str, typer.Option("--from", help="files:DIR or kafka://HOST:PORT[,HOST:PORT]/TOPIC.")
    ],
    line: LineName = "coupons",
    master: Master = "local[2]",
    once: Annotated[bool, typer.Option("--once", help="Take what is there, then end.")] = False,
) -> None:
    """Feed a line from files or Kafka by Spark, tick by tick, in place of `ingest`."""
    from headrace.stream.service import run
    from headrace.stream.source import parse

    settings, spec = open_line(line)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("headrace").setLevel(logging.INFO)
    found = parse(source)
    until_signal(lambda stop: run(settings, spec, found, stop, master=master, once=once))


def backfill(
    *,
    start: Annotated[str, typer.Option("--from", help="First stamp: ISO 8601, UTC by default.")],
    end: Annotated[str, typer.Option("--to", help="The stamp after the last one.")],
    folder: Annotated[Path, typer.Option("--out", help="Parts go to a folder below this one.")],
    line: LineName = "coupons",
    engine: Annotated[Engine, typer.Option(help="Both leave the same bytes.")] = Engine.local,
    master: Master = "local[2]",
    as_json: AsJson = False,
) -> None:
    """Write window features at every impression of an interval of the log, as Parquet parts."""
    from headrace.backfill.interval import backfill as run

    settings, spec = open_line(line)
    interval = (_moment("--from", start), _moment("--to", end))
    home = settings.line_home(spec.line)
    written = run(spec, home, folder, interval, engine=engine.value, master=master)
    if as_json:
        show(written)
    else:
        out.print(f"{written.folder}: {written.rows} impressions", highlight=False, soft_wrap=True)


def _moment(option: str, text: str) -> int:
    """ISO 8601 as microseconds since 1970."""
    from headrace.events import micros

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{option} {text!r} is not a time; give one like 2026-11-20 or 2026-11-20T08:00:00Z"
        ) from None
    return micros(moment.replace(tzinfo=moment.tzinfo or UTC))
