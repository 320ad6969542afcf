"""`headrace run`: one Kubeflow pipeline, here or on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.errors import GateRejected, HeadraceError


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
