"""Events in, features and samples out: the resident process, and the import of a history."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.atomic import disk_faults
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import IMPRESSION, TIME, served_schema
from headrace.ingest import checkpoint
from headrace.ingest.tick import Logs, Push, TickState, push_newest, run_tick
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter, clock_us
from headrace.requests import transform
from headrace.sample import TickManifest, ticks
from headrace.settings import Settings

__all__ = ["TickState", "import_history", "run", "run_tick"]

LOG = logging.getLogger(__name__)
BOOTSTRAP = "bootstrap"


def run(
    settings: Settings, spec: LineSpec, stop: threading.Event, push: Push | None = None
) -> None:
    """Collect events over HTTP and run a tick each `cadence.tick` until `stop` is set.

    Finishes what was cut short before, pushes the newest tick again, then goes on. On `stop`
    accepted events are stored and a last tick reads them. Raises `EnvironmentFault` when the
    port or the log is taken. `push` defaults to Feast's online store.
    """
    push = push or feast_push(settings, spec)
    home = settings.line_home(spec.line)
    with disk_faults(home):
        _run(settings, spec, home, stop, push)


def _run(settings: Settings, spec: LineSpec, home: Path, stop: threading.Event, push: Push) -> None:
    from headrace.ingest.collector import Collector

    writer = EventWriter(home / "log" / "events", spec)
    try:
        served = FileLog(home / "log" / "served", served_schema(spec))
        state = resume(spec, home, Logs(writer, served))
        push_newest(state, push)
        collector = Collector(settings, spec, writer, home / "malformed.jsonl")
        collector.start()
        try:
            _loop(state, writer, collector.check, stop, push)
        finally:
            collector.stop()
        while advance(state, push) is not None:
            pass
    finally:
        writer.close()


def resume(spec: LineSpec, home: Path, logs: Logs | None = None) -> TickState:
    """The state to go on from; a checkpoint that a kill prevented is made up for."""
    state = TickState.restore(spec, home, logs=logs)
    state.save()
    checkpoint.prune(home)
    return state


def advance(
    state: TickState, push: Push | None, events_to: int | None = None
) -> TickManifest | None:
    """Run the next tick if there is anything to read (or a tick was cut short)."""
    plan = state.plan(events_to)
    return None if plan is None else run_tick(state, plan, push)


def _loop(
    state: TickState,
    writer: EventWriter,
    check: Callable[[], None],
    stop: threading.Event,
    push: Push,
) -> None:
    cadence_s = state.spec.cadence.tick / 1e6
    due = time.monotonic()
    while not stop.wait(max(due - time.monotonic(), 0.0)):
        due = max(due + cadence_s, time.monotonic())
        check()
        if advance(state, push) is None and slides(state, clock_us()):
            writer.mark()
            advance(state, push)


def slides(state: TickState, now_us: int) -> bool:
    """Whether a tick without news would say something new: a window or a wait has run out."""
    return state.labels.due(now_us) or any(
        state.windows.changed(view, state.at_us, now_us).num_rows for view in state.spec.views
    )


def import_history(
    settings: Settings, spec: LineSpec, events: pa.Table, tick_us: int, push: Push | None = None
) -> int:
    """Take a past in, as if it had been lived: ticks of `tick_us`, with the vectors of then.

    `events` (event schema, by `arrival_at`) bring their own stamps. What a server would have
    used for an impression is computed from the previous tick and goes to the served log with
    version "bootstrap", a NaN score and the impression's `event_at` as request time. Only the
    last row of a key is pushed. An import that was cut short goes on when called again with
    the same events. Returns the number of committed ticks. Raises `InputError` for stamps
    that do not fit behind the log.
    """
    _check_history(spec, events, tick_us)
    push = push or feast_push(settings, spec)
    home = settings.line_home(spec.line)
    with disk_faults(home):
        return _import(spec, home, events, tick_us, push)


def _import(spec: LineSpec, home: Path, events: pa.Table, tick_us: int, push: Push) -> int:
    writer = EventWriter(home / "log" / "events", spec)
    served = FileLog(home / "log" / "served", served_schema(spec), writer=True)
    try:
        first = _store_history(writer, events)
        state = resume(spec, home, Logs(writer, served))
        arrival = events["arrival_at"].cast(pa.int64()).to_numpy()
        cuts = first + np.append(np.flatnonzero(np.diff(arrival // tick_us)) + 1, arrival.size)
        for cut in cuts[cuts > state.events_to].tolist():
            if served.head == state.served_to:  # else: a cut-short import has stored them
                impressions = _impressions(state, cut)
                served.append(bootstrap_vectors(state, impressions))
            advance(state, None, cut)
        _push_last_rows(state, push)
        return state.next_tick
    finally:
        served.close()
        writer.close()


def bootstrap_vectors(state: TickState, impressions: pa.Table) -> pa.Table:
    """Served rows (served schema) for impressions, with the values of the newest tick."""
    spec, count = state.spec, impressions.num_rows
    at = np.full(count, state.at_us, dtype=np.int64)
    windows = state.windows.values(impressions, at)
    declared = impressions.select(list(spec.columns))
    request_at = impressions["event_at"]
    asked = declared.append_column("request_at", request_at.cast(pa.int64()))
    for name in windows.column_names:
        asked = asked.append_column(name, windows[name])
    inputs = transform(spec, asked)
    read_at = pa.array(at).cast(TIME) if state.next_tick else pa.nulls(count, TIME)
    columns = {
        "impression_id": impressions["impression_id"],
        "request_id": pc.coalesce(impressions["request_id"], impressions["impression_id"]),
        "served_at": request_at,
        "version": pa.array([BOOTSTRAP] * count, pa.string()),
        "score": pa.array(np.full(count, np.nan)),
        **{name: declared[name] for name in spec.columns},
        **{f"{view}__at": read_at for view in spec.views},
        **{name: windows[name] for name in windows.column_names},
        **{name: inputs[name] for name in inputs.column_names},
    }
    schema = served_schema(spec)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _impressions(state: TickState, cut: int) -> pa.Table:
    events = state.logs.events.read(state.events_to, cut)
    return events.filter(pc.equal(events["event"], IMPRESSION)).combine_chunks()


def _check_history(spec: LineSpec, events: pa.Table, tick_us: int) -> None:
    if tick_us <= 0:
        raise InputError(f"tick_us {tick_us}: a tick is longer than 0 us")
    if events.num_rows == 0:
        raise InputError("the history has no events; give at least one")
    names = set(events["event"].unique().to_pylist())
    unknown = names - {IMPRESSION, spec.label.engagement}
    if unknown:
        raise InputError(
            f"event {sorted(unknown)[0]!r} is neither 'impression' nor {spec.label.engagement!r}, "
            f"the engagement of line {spec.line!r}; rename it or leave it out"
        )


def _store_history(writer: EventWriter, events: pa.Table) -> int:
    """Append the history unless the log ends with it already; return its first offset."""
    first: int = writer.head - events.num_rows
    if first >= 0 and writer.last_us == events["arrival_at"].cast(pa.int64())[-1].as_py():
        if not writer.read(first, writer.head).equals(events):
            raise InputError("the log ends at the same time with other events; use an empty home")
        return first
    return writer.append_stamped(events)


def _push_last_rows(state: TickState, push: Push) -> None:
    last: dict[str, pa.Table] = {}
    for manifest in ticks(state.home):
        for view, path in manifest.features.items():
            rows = pq.read_table(state.home / path, partitioning=None)
            last[view] = pa.concat_tables([last[view], rows]) if view in last else rows
    for view, rows in last.items():
        key = [name for name in rows.column_names if name in state.spec.columns]
        newest = ~rows.select(key).to_pandas().duplicated(keep="last").to_numpy()
        push(view, rows.filter(pa.array(newest)))


def feast_push(settings: Settings, spec: LineSpec) -> Push:
    """A push to Feast's online store."""
    from headrace.store import Store

    store = Store(settings)
    return lambda view, rows: store.push(spec, view, rows)
