"""A past that is imported gives what living it would have given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.account import account
from headrace.errors import InputError
from headrace.events import event_schema
from headrace.feature_rows import part_schema
from headrace.ingest.service import import_history, resume
from headrace.ingest.tick import TickState, run_tick
from headrace.labels.state import LabelState
from headrace.log.stamp import EventWriter
from headrace.sample import head_tick, read_samples, ticks
from headrace.settings import load_settings
from headrace.windows import WindowState
from tests.campaign import SECOND, SPEC, Pushed, history, tree
from tests.counted import counted


def test_import_lives_the_past_with_the_vectors_of_then(settings):
    events, pushed = history(60), Pushed()
    home = settings.line_home(SPEC.line)
    count = import_history(settings, SPEC, events, 5 * SECOND, pushed)
    assert count == head_tick(home) == len(ticks(home))
    samples = read_samples(SPEC, home, 0, count)
    assert samples.num_rows > 500
    assert set(samples["version"].to_pylist()) == {"bootstrap"}
    labels = LabelState(SPEC)
    offsets = pa.array(np.arange(events.num_rows))
    resolved = labels.resolve(events.append_column("offset", offsets))
    windows = WindowState(SPEC)
    windows.append(resolved)
    at = samples["coupons_by_item_id__at"].cast(pa.int64()).fill_null(0).to_numpy()
    again = windows.values(samples, at)
    for name in again.column_names:
        assert samples[name].to_pylist() == again[name].to_pylist()
    assert max(again["item_clicks_count_1m"].to_pylist()) > 3
    last = ticks(home)[-1].at_us
    for (view, key), row in pushed.online.items():
        columns = {name: [None] for name in SPEC.columns}
        columns |= {name: [part] for name, part in zip(SPEC.views[view][0].key, key, strict=True)}
        keys = pa.table(
            {n: pa.array(v, event_schema(SPEC).field(n).type) for n, v in columns.items()}
        )
        now = windows.values(keys, np.array([last]))
        for feature in SPEC.views[view]:
            assert row[feature.name] == now[feature.name][0].as_py()
    counts = account(settings, SPEC)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    assert counts["appended"] == events.num_rows
    assert counts["duplicate_impression"] > 5


def test_import_goes_on_where_it_was_cut_short(settings, tmp_path, monkeypatch):
    events = history(30)
    home = settings.line_home(SPEC.line)
    import headrace.ingest.history as module

    real, calls = module.advance, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "advance", failing)
    with pytest.raises(KeyboardInterrupt):
        import_history(settings, SPEC, events, 5 * SECOND, Pushed())
    import_history(settings, SPEC, events, 5 * SECOND, Pushed())
    other = load_settings({"HEADRACE_HOME": str(tmp_path / "other")})
    import_history(other, SPEC, events, 5 * SECOND, Pushed())
    assert tree(home) == tree(other.line_home(SPEC.line))
    with pytest.raises(InputError, match="arrival_at"):
        import_history(settings, SPEC, events.slice(0, 9), 5 * SECOND, Pushed())


def test_parts_are_what_feast_expects_and_restored_state_is_the_same(settings):
    home = settings.line_home(SPEC.line)
    count = import_history(settings, SPEC, history(45, 10), SECOND, Pushed())
    assert count > 40
    newest = ticks(home)[-2]
    for view, path in newest.features.items():
        assert pq.read_table(home / path, partitioning=None).schema == part_schema(SPEC, view)
    assert sorted(path.name for path in (home / "state").iterdir()) == [
        f"b={count // 20 * 20 - 21:08d}",
        f"b={count // 20 * 20 - 1:08d}",
    ]
    quick = resume(SPEC, home)
    for folder in (home / "state").iterdir():
        folder.rename(home / f"aside {folder.name}")
    slow = TickState.restore(SPEC, home)
    assert slow.at_us == quick.at_us
    for ours, theirs in ((quick.labels, slow.labels), (quick.windows, slow.windows)):
        a, b = ours.checkpoint(), theirs.checkpoint()
        assert a.keys() == b.keys()
        assert all(a[name].equals(b[name]) for name in a)


def test_a_tick_costs_a_few_calls_and_bytes_an_event(settings):
    home = settings.line_home(SPEC.line)
    events = history(500, 60)
    writer = EventWriter(home / "log" / "events", SPEC)
    writer.append_stamped(events)
    writer.close()
    state, spent = resume(SPEC, home), []
    for cut in (10_000, 20_000, 30_000):
        plan = state.plan(cut)
        assert plan is not None
        with counted() as work:
            run_tick(state, plan, None)
        spent.append(work)
    for work in spent:  # 2.9 calls, 580 bytes and 450 bytes
        assert work.calls < 4 * 10_000
        assert work.arrow_bytes < 1_000 * 10_000
        assert work.peak_bytes < 1_000 * 10_000
