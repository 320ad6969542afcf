"""Score what was asked for: a file, or an interval of the log. Verb and component call this."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import moment, stamp
from headrace.past import Advance, quiet
from headrace.scoring import batch
from headrace.scoring.files import InputFile
from headrace.scoring.impressions import AT, Interval
from headrace.settings import Settings


def score_rows(
    settings: Settings,
    spec: LineSpec,
    output: Path | None = None,
    *,
    source: Path | None = None,
    interval: tuple[int, int] | None = None,
    version: str = batch.CHAMPION,
    at_column: str | None = None,
    engine: str = "local",
    master: str = "local[2]",
    wait_s: float = 0.0,
    advance: Advance = quiet,
) -> batch.Scored:
    """Score the rows of the file `source`, or the impressions with a stamp in `interval` (us).

    `output` may be left out with an interval: then it is `scores/batch/<from>-<to>.parquet` in the
    line's home. For the ticks that hold its last events it waits up to `wait_s`. Raises as
    `batch.score` does, and `InputError` unless one of the two is given.
    """
    if (source is None) == (interval is None):
        raise InputError("give either a file of rows, or an interval of the log (from and to)")
    home = settings.line_home(spec.line)
    with ExitStack() as ends:
        rows: batch.Rows
        if interval is not None:
            if at_column is not None:
                raise InputError("an at-column goes with a file; the log knows its moments")
            at_column, rows = AT, Interval(spec, home, interval, wait_s)
            name = "-".join(map(stamp, interval))
            output = output or home / "scores" / "batch" / f"{name}.parquet"
        else:
            assert source is not None
            if output is None:
                raise InputError("say where the scores of the file go (output)")
            if output.resolve() == source.resolve():
                raise InputError(f"{output} is the file of the rows; give the scores another one")
            rows = ends.enter_context(InputFile(source))
        return batch.score(
            settings,
            spec,
            rows,
            output,
            version=version,
            at_column=at_column,
            engine=engine,
            master=master,
            advance=advance,
        )


def interval_of(start: str | None, end: str | None) -> tuple[int, int] | None:
    """An interval in us of two times in ISO 8601, UTC by default; None where neither is given.

    Raises `InputError` for one without the other, and for what is no time.
    """
    if not start and not end:
        return None
    if not start or not end:
        raise InputError("an interval of the log has two ends; give both from and to")
    return moment("from", start), moment("to", end)
