"""Run a pipeline that is no cycle: it moves no champion and leaves no record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace import records
from headrace.errors import DeclarationError, HeadraceError
from headrace.launch import cluster
from headrace.launch.local import run_here
from headrace.launch.package import compiled
from headrace.launch.run import run_titled
from headrace.settings import Settings, find_line

ERRANDS: Final = {
    "batch_score": ("source", "start", "end", "output", "version", "at_column", "engine"),
    "backfill_features": ("start", "end", "engine"),
    "tune": ("name",),
    "write_report": ("start", "end"),
}
"""Arguments of each pipeline beside `line`; text, empty for what is left out."""


@dataclass(frozen=True)
class ErrandResult:
    """A run that ended well. `log`: of a run here; `endpoint_run`: the id of one on a cluster."""

    run: str
    log: str | None = None
    endpoint_run: str | None = None


def holds_events(settings: Settings, line: str, start: str, end: str) -> bool:
    """Whether the line's log has events of `[start, end)` (ISO 8601); yes where only a cluster's
    home could tell.
    """
    if settings.kfp_endpoint is not None:
        return True
    from headrace.events import event_schema, moment  # a launch alone needs no Arrow
    from headrace.log.files import FileLog
    from headrace.log.stamp import offset_at

    spec = find_line(settings, line)
    log = FileLog(settings.line_home(line) / "log" / "events", event_schema(spec))
    first, stop = (offset_at(log, moment(*each)) for each in (("from", start), ("to", end)))
    return first < stop


def run_errand(
    settings: Settings,
    pipeline: str,
    line: str,
    options: Mapping[str, str],
    *,
    timeout_s: float = 3600.0,
    poll_s: float = cluster.POLL_S,
) -> ErrandResult:
    """Run one of `ERRANDS` to its end with some of its options; see the component.

    Raises `HeadraceError` with the reason when the component failed, `DeclarationError` for an
    unknown line or option, `EnvironmentFault` when the endpoint refuses or the time is up.
    """
    unknown = sorted(options.keys() - set(ERRANDS[pipeline]))
    if unknown:
        known = ", ".join(ERRANDS[pipeline])
        raise DeclarationError(f"{pipeline} takes no {unknown[0]!r}; use {known}")
    spec, name = find_line(settings, line), records.new_run()
    arguments: dict[str, int | str] = {"line": spec.line, **options}
    if settings.kfp_endpoint is None:
        log = settings.home / "logs" / f"kfp-{name}.log"
        problem = run_here(settings, compiled(pipeline), name, arguments, log)
        if problem is not None:
            raise HeadraceError(f"{pipeline} {line}: {problem}")
        return ErrandResult(name, log=str(log))
    there = run_titled(
        settings, spec, pipeline, name, arguments, timeout_s=timeout_s, poll_s=poll_s
    )
    if there.state != "SUCCEEDED":
        why = f": {there.why}" if there.why else ""
        raise HeadraceError(f"{pipeline} {line}: run {there.run_id} ended {there.state}{why}")
    return ErrandResult(name, endpoint_run=there.run_id)
