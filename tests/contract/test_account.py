"""Every event of the log is accounted for, offset by offset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.account import account
from headrace.ingest.service import import_history
from headrace.line import LineStore
from headrace.quarantine import Quarantine
from headrace.sample import ticks
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


def publish(store: LineStore, parent: str | None, start: int, stop: int, excluded: Any) -> str:
    state = {"w": np.array([float(stop)])}
    described = {"from_tick": start, "to_tick": stop, "excluded": excluded, "watermark_us": 1}
    rest = {"event_at_us": 1, "feature_service": "f", "code": "c", "rows": 1, "metrics": {}}
    return store.publish(state, parent=parent, **described, **rest).version
