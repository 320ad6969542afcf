"""The import of a past, as if it had been lived."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.atomic import disk_faults
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import IMPRESSION, TIME, served_schema, task_scores
from headrace.ingest.online import FeastOnline, Online, catch_up
from headrace.ingest.plan import Logs
from headrace.ingest.tick import TickState, advance, resume
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter, event_writer
from headrace.requests import transform
from headrace.settings import Settings

BOOTSTRAP = "bootstrap"


def import_history(
    settings: Settings, spec: LineSpec, events: pa.Table, tick_us: int, online: Online | None = None
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
    online = online or FeastOnline(settings, spec)
    home = settings.line_home(spec.line)
    with disk_faults(home):
        return _import(settings, spec, events, tick_us, online)


def _import(
    settings: Settings, spec: LineSpec, events: pa.Table, tick_us: int, online: Online
) -> int:
    home, writer = settings.line_home(spec.line), event_writer(settings, spec)
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
                served.join()
            advance(state, None, cut)
        catch_up(state, online)
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
        **{name: pa.array(np.full(count, np.nan)) for name in ("score", *task_scores(spec))},
        "arm": pa.nulls(count, pa.string()),
        "propensity": pa.nulls(count, pa.float64()),
        "fallback": pa.nulls(count, pa.string()),
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
    unknown = names - set(spec.label.events)
    if unknown:
        known = " nor ".join(map(repr, spec.label.events))
        raise InputError(
            f"event {sorted(unknown)[0]!r} is neither {known}, "
            f"the events of line {spec.line!r}; rename it or leave it out"
        )


def _store_history(writer: EventWriter, events: pa.Table) -> int:
    """Append the history unless the log ends with it already; return its first offset."""
    first: int = writer.head - events.num_rows
    if first >= 0 and writer.last_us == events["arrival_at"].cast(pa.int64())[-1].as_py():
        if not writer.read(first, writer.head).equals(events):
            raise InputError("the log ends at the same time with other events; use an empty home")
        return first
    return writer.append_stamped(events)
