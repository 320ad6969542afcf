"""Run a pipeline on a cluster in two halves, with a waiting between them that somebody else does.

The name of a run is decided before it is submitted, so whoever begins again finds what an
earlier attempt has submitted, and submits nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from headrace import records
from headrace.errors import HeadraceError
from headrace.launch import cluster
from headrace.launch.package import package_of
from headrace.launch.run import KIND_OF, title
from headrace.launch.waiting import Heard, find_there
from headrace.settings import Settings, find_line


def submit_there(
    settings: Settings, pipeline: str, line: str, run: str, options: Mapping[str, str]
) -> str:
    """The id of the cluster's run of that name: submitted now, unless it is there already.

    Raises as `run_pipeline` does for what cannot be submitted.
    """
    spec, name = find_line(settings, line), title(pipeline, line, run)
    found = asyncio.run(find_there(settings, name))
    if found is not None:
        return found
    arguments: dict[str, int | str] = {"line": spec.line, **options}
    arguments |= {"run": run} if pipeline in KIND_OF else {}
    return cluster.submit(settings, package_of(settings, spec, pipeline), arguments, name)[1]


def settle_there(settings: Settings, pipeline: str, line: str, run: str, heard: Heard) -> None:
    """Take note of how a run ended. Raises `HeadraceError` unless it succeeded.

    A cycle that failed before it could leave its record is recorded as failed.
    """
    if heard.succeeded:
        return
    spec = find_line(settings, line)
    what = f"ended {heard.state} on the cluster" if heard.how == "ended" else f"is {heard.how}"
    why = f"run {heard.run_id} {what}" + (f": {heard.why}" if heard.why else "")
    over = heard.how in ("ended", "late")
    if pipeline in KIND_OF and over and records.find_record(settings, spec, run) is None:
        failed = replace(records.started(run, KIND_OF[pipeline]), outcome="failed", reasons=(why,))
        records.record(settings, spec, failed)
    if heard.how in ("lost", "refused"):
        raise cluster.fault(settings, why)
    raise HeadraceError(f"{pipeline} {line}: {why}")
