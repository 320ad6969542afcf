"""`headrace score-batch` and `score-log`: scores of many rows, and of a log as it grows."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.options import (
    AsJson,
    LineName,
    Master,
    open_line,
    out,
    progress,
    show,
    until_signal,
)


def score_batch(
    *,
    line: LineName = "coupons",
    given: Annotated[
        Path | None, typer.Option("--input", help="Rows to score: .parquet, .csv or .arrow.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Or the log's impressions from this stamp,")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="up to before this one.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Parquet file to write. Default, of the log: below scores/batch/."),
    ] = None,
    version: Annotated[str, typer.Option(help="Such as v000007.")] = "champion",
    at_column: Annotated[
        str | None,
        typer.Option(help="Column of --input: when each row was asked. Default: now, online."),
    ] = None,
    by_spark: Annotated[bool, typer.Option("--spark", help="Let Spark's workers score.")] = False,
    master: Master = "local[2]",
    as_json: AsJson = False,
) -> None:
    """Score the rows of a file, or an interval of the log, and write them as Parquet.

    The scores are those that the server would have given, bit for bit.
    """
    from headrace.scoring.run import interval_of, score_rows

    settings, spec = open_line(line)
    interval = interval_of(start, end)
    with progress(f"scores of {spec.line}") as advance:
        written = score_rows(
            settings,
            spec,
            output,
            source=given,
            interval=interval,
            version=version,
            at_column=at_column,
            engine="spark" if by_spark else "local",
            master=master,
            advance=advance,
        )
    if as_json:
        show(written)
        return
    told = f"{written.output}: {written.rows} rows by {written.version}"
    if written.refused:
        told += f"; {written.refused} refused, see {written.refusals}"
    out.print(told, highlight=False, soft_wrap=True)


def score_log(
    line: LineName = "coupons",
    of: Annotated[
        Literal["impressions", "served"] | None,
        typer.Option(
            help="Impressions as they arrive, or requests as they were answered. "
            "Default: as the line's `nearline` says, else impressions."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Score what is there, then end.")] = False,
    every_s: Annotated[
        float | None,
        typer.Option(
            "--every-s", min=0.05, help="Seconds between looks. Default: the line's, else 5."
        ),
    ] = None,
) -> None:
    """Follow a log of a line and score what is new with the champion, as Parquet parts."""
    from headrace.declaration import NearlineSpec
    from headrace.scoring.nearline import run, scores_folder

    settings, spec = open_line(line)
    declared = spec.nearline or NearlineSpec()
    which = of or declared.of
    folder = scores_folder(settings.line_home(spec.line), which)
    pause_s = declared.every / 1e6 if every_s is None else every_s
    keep_us = None if spec.nearline is None else spec.nearline.keep

    def follow(stop: threading.Event) -> None:
        rows = run(settings, spec, stop, which, once=once, every_s=pause_s, keep_us=keep_us)
        out.print(f"{folder}: {rows} rows", highlight=False, soft_wrap=True)

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("headrace").setLevel(logging.INFO)
    until_signal(follow)
