"""The command line: one verb for each flow, imports inside the verbs so that `--help` is quick.

Exit codes are those of `headrace.errors`; 2 for a wrong option, 130 after Ctrl-C. People read
tables, `--json` gives machines the same values.
"""

from __future__ import annotations

import errno
import os
import sys

import typer

from headrace.cli.cases import cases_app
from headrace.cli.chaos import chaos
from headrace.cli.declared import apply, expectations, lines
from headrace.cli.drift import drift
from headrace.cli.drill import drill
from headrace.cli.export import export
from headrace.cli.features import features_app
from headrace.cli.guard import guard
from headrace.cli.line import line_app, quarantine_app
from headrace.cli.pipelines import pipelines_app
from headrace.cli.proof import account, parity
from headrace.cli.race import race_app
from headrace.cli.replay import replay
from headrace.cli.report import report, results
from headrace.cli.run import run
from headrace.cli.score import score_batch, score_log
from headrace.cli.services import ingest, learn, serve, simulate
from headrace.cli.spark import backfill, stream
from headrace.cli.stack import demo, down, status, up
from headrace.cli.train import train_app
from headrace.errors import HeadraceError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _verb in (
    *(parity, guard, drill, drift, report, backfill, stream, export, chaos, score_batch, score_log),
    *(demo, up, down, status, apply, ingest, serve, learn, simulate, run, replay, account),
    *(results, lines, expectations),
):
    app.command()(_verb)
app.add_typer(train_app, name="train")
app.add_typer(line_app, name="line")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(features_app, name="features")
app.add_typer(race_app, name="race")
app.add_typer(cases_app, name="cases")
app.add_typer(pipelines_app, name="pipelines")

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
