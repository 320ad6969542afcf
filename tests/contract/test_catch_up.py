"""What ingest pushes when it starts: all that the online store lacks, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench._redis import ABSENT, RedisServer, installed
from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.ingest.online import catch_up
from headrace.ingest.service import run
from headrace.ingest.tick import TickState, run_tick
from headrace.log.files import FileLog
from headrace.log.stamp import clock_us
from headrace.sample import TickManifest, head_tick, ticks
from headrace.settings import PROJECT, Settings, find_line, load_line
from headrace.store import Store
from tests.campaign import free_port

SECOND = 1_000_000
VIEW = "coupons_by_item_id"


class Memory:
    """An online store in memory: rows by key, a mark by view, and what was pushed."""

    def __init__(self, spec: LineSpec) -> None:
        self.spec = spec
        self.rows: dict[str, dict[Any, Any]] = {view: {} for view in spec.views}
        self.marks: dict[str, int] = {}
        self.pushed: list[tuple[str, pa.Table]] = []

    def push(self, view: str, rows: pa.Table) -> None:
        self.pushed.append((view, rows))
        for row in rows.to_pylist():
            self.rows[view][tuple(row[name] for name in self.spec.views[view][0].key)] = row
            self.marks[view] = max(self.marks.get(view, 0), row[f"{view}__at"])

    def mark_us(self, view: str) -> int | None:
        return self.marks.get(view)

    def clear(self, view: str) -> None:
        self.rows[view].clear()
        del self.marks[view]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[TickState, Memory]:
    """The state after 25 ticks of random traffic, and their rows."""
    spec, home = load_line(PROJECT / "lines" / "coupons.yaml"), tmp_path_factory.mktemp("lived")
    FileLog(home / "log" / "served", served_schema(spec), writer=True).close()
    log, rng = (
        FileLog(home / "log" / "events", event_schema(spec), writer=True),
        np.random.default_rng(4),
    )
    state, online = TickState(spec, home), Memory(spec)
    for tick in range(25):
        at_us = 1_700_000_000 * SECOND + tick * 5 * SECOND
        shown = [
            {"event": "impression", "impression_id": f"{tick}:{i}", "value": 0, "category": "x"}
            | {"user_id": f"u{rng.integers(9)}", "item_id": f"c{rng.integers(4)}"}
            | {"event_at": at_us + i, "arrival_at": at_us + i}
            for i in range(3)
        ]
        log.append(pa.Table.from_pylist(shown, schema=event_schema(spec)))
        plan = state.plan()
        assert plan is not None
        run_tick(state, plan, online.push)
    log.close()
    return state, online


def after(state: TickState, written: list[TickManifest]) -> Memory:
    """An online store that took these ticks' rows of one view."""
    store = Memory(state.spec)
    for tick in written:
        store.push(VIEW, pq.read_table(state.home / tick.features[VIEW], partitioning=None))
    store.pushed.clear()
    return store


def test_a_start_pushes_what_the_online_store_lacks_and_no_more(lived):
    state, full = lived
    written = [tick for tick in ticks(state.home) if VIEW in tick.features]
    assert len(written) > 20
    for kept in (0, 1, len(written) - 1, len(written)):
        store = after(state, written[:kept])  # a crash, or a Redis back from an old snapshot
        catch_up(state, store, parts_at_once=10)
        assert store.rows == full.rows
        assert store.marks == full.marks
        pushed = [rows for view, rows in store.pushed if view == VIEW]
        oldest = [rows[f"{VIEW}__at"].to_numpy().min() for rows in pushed]
        assert all(at > (written[kept - 1].at_us if kept else 0) for at in oldest)
        assert bool(pushed) == (kept < len(written))
        store.pushed.clear()
        catch_up(state, store)
        assert store.pushed == []


def test_the_rows_of_another_past_are_cleared_away(lived):
    state, full = lived
    store = after(state, [tick for tick in ticks(state.home) if VIEW in tick.features][:7])
    store.rows[VIEW]["nobody's",] = {}
    store.marks[VIEW] -= 1  # between two ticks: some other home's
    catch_up(state, store)
    assert store.rows == full.rows
    empty = TickState(state.spec, state.home / "new")
    catch_up(empty, store)  # a new home over an old Redis
    assert store.rows == {view: {} for view in state.spec.views}
    assert store.marks == {}


def post(settings: Settings, count: int) -> bool:
    """Send an impression; False while there is no collector."""
    event = {"event": "impression", "impression_id": f"i{count}", "event_at": clock_us()}
    event |= {"user_id": f"u{count % 7}", "item_id": f"c{count % 3}", "category": f"x{count % 2}"}
    try:
        answer = httpx.post(
            f"{settings.collector_url}/v1/events", json={"events": [event]}, trust_env=False
        )
    except httpx.TransportError:
        return False
    return answer.status_code == 200


@pytest.mark.faults
def test_a_redis_that_dies_during_ingest_and_comes_back_empty_ends_up_complete(
    tmp_path: Path, apply_lines: Callable[..., Settings], caplog: pytest.LogCaptureFixture
):
    if not installed():
        pytest.skip(ABSENT)
    server = RedisServer(tmp_path, "h@sh")
    server.start()
    settings = apply_lines(
        tmp_path, HEADRACE_ONLINE_STORE=server.url, HEADRACE_COLLECTOR_PORT=str(free_port())
    )
    declared = find_line(settings, "coupons")
    spec = declared.model_copy(
        update={"cadence": declared.cadence.model_copy(update={"tick": 100_000})}
    )
    home, posted = settings.line_home("coupons"), 0
    stop = threading.Event()
    ingest = threading.Thread(target=run, args=(settings, spec, stop))

    def failed(why: str) -> int:
        return sum(why in record.getMessage() for record in caplog.records)

    def post_until(reached: Callable[[], bool], seconds: float = 60) -> None:
        nonlocal posted
        until = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < until, caplog.text
            posted += post(settings, posted)
            time.sleep(0.01)

    ingest.start()
    try:
        post_until(lambda: head_tick(home) >= 5)
        server.stop()  # the next tick commits, and its push fails
        post_until(lambda: failed("start Redis there") >= 2)
        assert failed("lost rows") == 0
        server.start()
        done = head_tick(home)
        post_until(lambda: head_tick(home) >= done + 5)
        server.stop()  # gone and back between two pushes: nothing fails, all is lost
        server.start()
        post_until(lambda: failed("lost rows") > 0)
        done = head_tick(home)
        post_until(lambda: head_tick(home) >= done + 5)
        stop.set()
        ingest.join()
        assert FileLog(home / "log" / "events", event_schema(spec)).head == posted
        for view in spec.views:
            assert_complete(Store(settings), spec, home, view)
    finally:
        stop.set()
        ingest.join()
        server.stop()


def assert_complete(store: Store, spec: LineSpec, home: Path, view: str) -> None:
    """Each key that any tick wrote reads online as its newest row."""
    newest: dict[Any, dict[str, Any]] = {}
    names = spec.views[view][0].key
    for tick in ticks(home):
        if view in tick.features:
            rows = pq.read_table(home / tick.features[view], partitioning=None).to_pylist()
            newest |= {tuple(row[name] for name in names): row for row in rows}
    assert len(newest) >= 3
    keys = pa.Table.from_pylist([dict(zip(names, key, strict=True)) for key in newest])
    empty = pa.nulls(len(newest), pa.string())
    asked = {name: keys[name] if name in names else empty for name in spec.columns}
    found = store.read_online(spec, pa.table(asked | {"request_at": [clock_us()] * len(newest)}))
    assert found[f"{view}__at"].cast(pa.int64()).to_pylist() == [
        row[f"{view}__at"] for row in newest.values()
    ]
    for feature in spec.views[view]:
        assert found[feature.name].to_pylist() == [row[feature.name] for row in newest.values()]
