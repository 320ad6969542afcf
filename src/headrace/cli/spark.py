"""`headrace stream` and `headrace backfill`: the verbs that Spark runs, or may run."""

from __future__ import annotations

import enum
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import (
    AsJson,
    LineName,
    Master,
    open_line,
    out,
    show,
    until_signal,
)


class Engine(enum.StrEnum):
    """Where a backfill is computed."""

    local = "local"
    spark = "spark"


def stream(
    source: Annotated[
        str,
        typer.Option(
            "--from", help="files:DIR, files:s3://BUCKET/PREFIX or kafka://HOST:PORT[,…]/TOPIC."
        ),
    ],
    line: LineName = "coupons",
    master: Master = "local[2]",
    once: Annotated[bool, typer.Option("--once", help="Take what is there, then end.")] = False,
) -> None:
    """Feed a line from files, S3 or Kafka by Spark, tick by tick, in place of `ingest`."""
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
    from headrace.events import moment

    settings, spec = open_line(line)
    interval = (moment("--from", start), moment("--to", end))
    home = settings.line_home(spec.line)
    written = run(spec, home, folder, interval, engine=engine.value, master=master)
    if as_json:
        show(written)
    else:
        out.print(f"{written.folder}: {written.rows} impressions", highlight=False, soft_wrap=True)
