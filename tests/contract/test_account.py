"""Every event of the log is accounted for, offset by offset."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.account import account
from headrace.events import served_schema
from headrace.ingest.service import import_history
from headrace.ingest.tick import TickState, run_tick
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from headrace.quarantine import Quarantine
from headrace.sample import read_samples, ticks
from tests.campaign import SECOND, SPEC, Pushed, history


@pytest.mark.slow
def test_every_offset_is_found_where_it_is_and_only_there(settings):
    home = settings.line_home(SPEC.line)
    count = import_history(settings, SPEC, history(40), 2 * SECOND, Pushed())
    before = account(settings, SPEC)
    assert before["learned"] == before["quarantined"] == 0
    Quarantine(home).add(8, 10, ["test"])
    store = LineStore(home, SPEC.line)
    first = publish(store, None, 0, 8, [])
    second = publish(store, first, 8, count - 3, [[8, 10]])
    store.advance(None, first, "promote", "test")
    one = account(settings, SPEC)
    store.advance(store.champion(), second, "promote", "test")
    two = account(settings, SPEC)
    assert 0 < one["learned"] < two["learned"]
    assert one["quarantined"] == two["quarantined"] > 0
    assert before["pending"] == two["learned"] + two["pending"] + two["quarantined"]
    assert two["lost"] == two["duplicated"] == 0
    names = set(two) - {"appended", "malformed", "lost", "duplicated"}
    assert sum(two[name] for name in names) == two["appended"]
    path = home / (ticks(home)[9].samples or "")
    rows = pq.read_table(path, partitioning=None)
    pq.write_table(rows.slice(2), path)
    assert account(settings, SPEC)["lost"] >= 2
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]), path)
    assert account(settings, SPEC)["duplicated"] >= 1


def test_what_was_answered_with_defaults_is_accounted_for_and_never_sampled(settings):
    home, began_us = settings.line_home(SPEC.line), 1_700_000_000 * SECOND
    events = history(30)
    later = events.slice(0, 1).to_pylist()[0] | {"impression_id": "much later"}
    moment = events["arrival_at"][0].as_py() + timedelta(hours=1)
    later |= {"event_at": moment, "arrival_at": moment}
    writer = EventWriter(home / "log" / "events", SPEC)
    writer.append_stamped(pa.concat_tables([events, pa.Table.from_pylist([later], events.schema)]))
    writer.close()
    schema = served_schema(SPEC)
    blank = {field.name: None if field.nullable else 0 for field in schema}
    blank |= {"version": "v000001", "request_id": "r", "served_at": began_us - 1}
    words = (None, "defaults", "prior", "defaults,prior")
    rows = [blank | {"impression_id": f"i{i}", "fallback": words[i % 4]} for i in range(600)]
    log = FileLog(home / "log" / "served", schema, writer=True)
    log.append(pa.Table.from_pylist(rows, schema))
    log.close()
    state = TickState.restore(SPEC, home)
    for cut in (200, 400, None):
        while (plan := state.plan(cut)) is not None:
            run_tick(state, plan, None, checkpoint_every=1)
            state = TickState.restore(SPEC, home)  # as after a kill
            if cut is not None:
                break
    found = account(settings, SPEC)
    assert (found["lost"], found["duplicated"], found["unserved"]) == (0, 0, 0)
    assert found["defaults"] > 300  # half of the impressions, and their clicks
    names = set(found) - {"appended", "malformed", "lost", "duplicated"}
    assert sum(found[name] for name in names) == found["appended"]
    samples = read_samples(SPEC, home, 0, state.next_tick)
    assert set(samples["fallback"].to_pylist()) == {None, "prior"}
    assert samples["revision"].to_pylist().count(0) == 300


def publish(store: LineStore, parent: str | None, start: int, stop: int, excluded: Any) -> str:
    state = {"w": np.array([float(stop)])}
    described = {"from_tick": start, "to_tick": stop, "excluded": excluded, "watermark_us": 1}
    rest = {"event_at_us": 1, "feature_service": "f", "code": "c", "rows": 1, "metrics": {}}
    return store.publish(state, parent=parent, **described, **rest).version
