"""`headrace train`: make a candidate by hand. It is published, not judged and not promoted."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.options import AsJson, LineName, open_line, out, progress, show
from headrace.errors import InputError

train_app = typer.Typer(no_args_is_help=True, help=__doc__)


@train_app.callback()
def group() -> None:
    """Train a candidate; `headrace run full_train` also judges and promotes it."""


@train_app.command("full")
def full(
    line: LineName = "coupons",
    workers: Annotated[
        int, typer.Option(help="Processes on this machine that share each batch.")
    ] = 1,
    to_tick: Annotated[
        int | None, typer.Option(help="Learn the ticks before this one; default: leave a hold-out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train from scratch over the history from Feast, in bounded memory.

    Where TF_CONFIG says so, this process is one of a group on several machines.
    """
    from headrace import train

    settings, spec = open_line(line)
    if settings.cluster is not None and to_tick is None:
        raise InputError("TF_CONFIG names a group of workers; say where all end: --to-tick")
    if settings.cluster is not None and workers != 1:
        raise InputError(f"--workers {workers}: TF_CONFIG names the workers; leave one of them out")
    with progress(f"full training of {spec.line}") as advance:
        if settings.cluster is not None:
            assert to_tick is not None
            version = train.full_as_worker(settings, spec, to_tick, settings.cluster, advance)
        else:
            version = train.full(settings, spec, to_tick, workers=workers, advance=advance)
    if as_json:
        show({"line": spec.line, "version": version})
    else:
        out.print(f"{spec.line}: {version or 'the first worker publishes'}")
