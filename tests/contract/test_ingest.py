"""From posted events to committed ticks: nothing lost, nothing twice, all of it pushed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from headrace.account import account
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.events import event_schema, served_schema
from headrace.feature_rows import part_schema
from headrace.ingest.intake import DAY_US, Intake
from headrace.ingest.service import import_history, resume, run
from headrace.ingest.tick import TickState, run_tick
from headrace.labels.state import LabelState
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter, clock_us
from headrace.quarantine import Quarantine
from headrace.sample import head_tick, read_samples, ticks
from headrace.settings import PROJECT, Settings, load_settings
from headrace.windows import WindowState

SECOND = 1_000_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        {"HEADRACE_HOME": str(tmp_path), "HEADRACE_COLLECTOR_PORT": str(free_port())}
    )


def line(**changes: Any) -> LineSpec:
    raw = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text())
    raw["cadence"]["tick"] = "200ms"
    return LineSpec.model_validate(raw | changes)


SPEC = line()


class Pushed:
    """An online store that remembers who called, in place of Feast's."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, pa.Table]] = []
        self.online: dict[tuple[str, Any], dict[str, Any]] = {}
        self.marks: dict[str, int] = {}

    def push(self, view: str, rows: pa.Table) -> None:
        self.calls.append((view, rows))
        key = SPEC.views[view][0].key
        for row in rows.to_pylist():
            self.online[view, tuple(row[name] for name in key)] = row
        self.marks[view] = pc.max(rows["event_timestamp"].cast(pa.int64())).as_py()

    def mark_us(self, view: str) -> int | None:
        return self.marks.get(view)

    def clear(self, view: str) -> None:
        self.marks.pop(view)
        for place in [place for place in self.online if place[0] == view]:
            del self.online[place]


def history(seconds: int, per_second: int = 20, seed: int = 1) -> pa.Table:
    """Impressions, clicks of a tenth of them 0-20 s later, duplicates, orphans."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(seconds * per_second):
        shown = number * SECOND // per_second + 1_700_000_000 * SECOND
        row = {"impression_id": f"i{number}", "request_id": f"r{number // 4}", "value": 0}
        user, item = f"u{rng.integers(30)}", f"c{rng.integers(8)}"
        declared = {"user_id": user, "item_id": item, "category": item[-1], "discount": 0.2}
        impression = row | declared | {"event": "impression", "position": number % 4}
        rows.append(impression | {"event_at": shown, "arrival_at": shown})
        if rng.random() < 0.02:
            rows.append(rows[-1] | {"arrival_at": shown + 3 * SECOND})
        if rng.random() < 0.15:
            at = shown + int(rng.integers(20 * SECOND))
            who = f"i{number}" if rng.random() < 0.9 else f"nobody{number}"
            rows.append(
                row | {"event": "click", "impression_id": who, "value": 1}
                | {"event_at": at, "arrival_at": at}
            )  # fmt: skip
    rows.sort(key=lambda row: row["arrival_at"])
    return pa.Table.from_pylist(rows, schema=event_schema(SPEC))


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
    import headrace.ingest.service as module

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


def tree(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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


@contextmanager
def ingesting(settings: Settings, spec: LineSpec, push: Pushed) -> Iterator[httpx.Client]:
    stop, failed = threading.Event(), []

    def target() -> None:
        try:
            run(settings, spec, stop, push)
        except Exception as problem:  # noqa: BLE001
            failed.append(problem)

    thread = threading.Thread(target=target)
    thread.start()
    try:
        with httpx.Client(base_url=settings.collector_url, trust_env=False) as client:
            for _ in range(200):
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield client
    finally:
        stop.set()
        thread.join()
    assert not failed


def posted(which: str, name: str = "impression", **changes: Any) -> dict[str, Any]:
    event = {"event": name, "impression_id": which, "event_at": clock_us()}
    if name == "impression":
        event |= {"user_id": "u1", "item_id": "c1", "category": "x", "discount": 0.5, "position": 1}
    return event | changes


def vectors(home: Path, ids: list[str]) -> None:
    schema = served_schema(SPEC)
    row = {f.name: None if f.nullable else 0 for f in schema}
    row |= {"version": "v000001", "request_id": "r", "served_at": clock_us()}
    log = FileLog(home / "log" / "served", schema, writer=True)
    log.append(pa.Table.from_pylist([row | {"impression_id": which} for which in ids], schema))
    log.close()


def test_posted_events_become_samples_and_every_event_is_accounted_for(settings):
    home, pushed = settings.line_home(SPEC.line), Pushed()
    vectors(home, ["a", "b"])
    bad = [
        {"event": "buy"},
        posted("", "impression"),
        posted("a", colour="red"),
        posted("a", event_at="2026-11-20T10:00:00"),
        7,
    ]
    with ingesting(settings, SPEC, pushed) as client:
        good = [posted("a"), posted("b"), posted("a", "click", event_at=now_iso()), posted("b")]
        answer = client.post("/v1/events", json={"events": [*good, *bad]})
        assert answer.status_code == 200
        assert (answer.json()["accepted"], answer.json()["malformed"]) == (4, 5)
        unreadable = client.post("/v1/events", content=b'{"events": [')
        assert (unreadable.status_code, unreadable.json()["malformed"]) == (400, 1)
        wait_for(lambda: client.get("/v1/status").json()["events_to"] >= 4)
        status = client.get("/v1/status").json()
        assert (status["line"], status["malformed"]) == ("coupons", 6)
        client.post("/v1/events", json={"events": [posted("c")]})
    assert FileLog(home / "log" / "events", event_schema(SPEC)).head == 5
    assert ticks(home)[-1].events[1] == 5
    samples = read_samples(SPEC, home, 0, head_tick(home))
    assert samples["impression_id"].to_pylist() == ["a"]
    assert samples["label"].to_pylist() == [1]
    row = pushed.online["coupons_by_item_id", ("c1",)]
    assert (row["item_impressions_count_1m"], row["item_clicks_count_1m"]) == (3, 1)
    assert [at for _, rows in pushed.calls for at in rows["event_timestamp"].to_pylist()] == sorted(
        at for _, rows in pushed.calls for at in rows["event_timestamp"].to_pylist()
    )
    lines = [json.loads(text) for text in (home / "malformed.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["reason"] and "raw" in line and line["received_at"] for line in lines)
    counts = account(settings, SPEC)
    expected = {"appended": 5, "pending": 4, "duplicate_impression": 1, "malformed": 6, "lost": 0}
    assert {name: counts[name] for name in expected} == expected
    calls = len(pushed.calls)
    with ingesting(settings, SPEC, pushed):
        pass
    assert len(pushed.calls) == calls  # the store holds all of it


def test_windows_slide_when_traffic_stops(settings):
    raw = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text())
    windows = [window | {"window": "1s"} for window in raw["windows"]]
    spec = line(windows=windows, label=raw["label"] | {"provisional_after": "500ms"})
    home, pushed = settings.line_home(spec.line), Pushed()
    vectors(home, ["a"])

    def value() -> int | None:
        row = pushed.online.get(("coupons_by_item_id", ("c1",)), {})
        return row.get("item_impressions_count_1m")

    with ingesting(settings, spec, pushed) as client:
        client.post("/v1/events", json={"events": [posted("a")]})
        wait_for(lambda: value() == 1)
        wait_for(lambda: value() == 0)
        done = head_tick(home)
        assert read_samples(spec, home, 0, done)["label"].to_pylist() == [0]
        time.sleep(0.7)
        assert head_tick(home) == done  # nothing left to slide: no more marks
    counts = account(settings, spec)
    assert (counts["lost"], counts["appended"]) == (0, counts["mark"] + 1)


def wait_for(true: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def now_iso() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat()


def test_a_second_ingest_and_a_taken_port_are_refused(settings):
    with ingesting(settings, SPEC, Pushed()), pytest.raises(EnvironmentFault, match="already"):
        run(settings, SPEC, threading.Event(), Pushed())
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.collector_port))
        other.listen()
        with pytest.raises(EnvironmentFault, match="HEADRACE_COLLECTOR_PORT"):
            run(settings, SPEC, threading.Event(), Pushed())


NOW = 1_700_000_000 * SECOND


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event": None}, "event: None"),
        ({"event": "mark"}, "event: 'mark'"),
        ({"impression_id": None}, "impression_id"),
        ({"impression_id": 5}, "impression_id"),
        ({"request_id": 5}, "request_id"),
        ({"event_at": None}, "event_at"),
        ({"event_at": True}, "event_at"),
        ({"event_at": 1.5}, "event_at"),
        ({"event_at": -1}, "before 1970"),
        ({"event_at": NOW + DAY_US + 1}, "future"),
        ({"event_at": "yesterday"}, "ISO 8601"),
        ({"event_at": "2023-11-14T22:13:20"}, "no zone"),
        ({"value": "1"}, "value"),
        ({"value": 2**63}, "value"),
        ({"event": "click", "value": 0}, "value"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"position": 1.0}, "position"),
        ({"position": True}, "position"),
        ({"discount": "0.5"}, "discount"),
        ({"discount": float("nan")}, "discount"),
        ({"discount": 10**400}, "discount"),
        ({"arrival_at": 1}, "arrival_at"),
    ],
)
def test_malformed_events_are_refused_with_the_field(changes, reason):
    body = json.dumps({"events": [posted("a", event_at=NOW) | changes]}).encode()
    rows, refused, readable = Intake(SPEC).read(body, NOW)
    assert (rows, readable, len(refused)) == ([], True, 1)
    assert reason in refused[0][0]


def test_times_with_any_zone_are_read_exactly():
    for text in ("2023-11-14T22:13:20.000001Z", "2023-11-14T23:13:20.000001+01:00"):
        assert Intake(SPEC).row(posted("a", event_at=text), NOW)["event_at"] == NOW + 1


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


def test_a_tick_of_ten_thousand_events_is_quick(settings):
    home = settings.line_home(SPEC.line)
    events = history(500, 60)
    writer = EventWriter(home / "log" / "events", SPEC)
    writer.append_stamped(events)
    writer.close()
    state, spent = resume(SPEC, home), []
    for cut in (10_000, 20_000, 30_000):
        plan = state.plan(cut)
        assert plan is not None
        began = time.process_time()
        run_tick(state, plan, None)
        spent.append(time.process_time() - began)
    assert min(spent) < 1.0  # 0.1 s alone on the machine


class Cut(BaseException):
    """The process ends here."""


def some_ticks(home: Path, cuts: list[int]) -> None:
    state = TickState.restore(SPEC, home)
    state.save(2)
    for cut in cuts[state.next_tick :]:
        plan = state.plan(cut)
        assert plan is not None
        run_tick(state, plan, None, checkpoint_every=2)


@pytest.mark.faults
def test_a_fault_at_any_durable_step_changes_nothing(settings, tmp_path, monkeypatch):
    events = history(60, 5)
    home = settings.line_home(SPEC.line)
    writer = EventWriter(home / "log" / "events", SPEC)
    writer.append_stamped(events)
    writer.close()
    vectors(home, [f"i{number}" for number in range(300)])
    cuts = [80, 160, 240]
    calm = tmp_path / "calm"
    shutil.copytree(home, calm)
    some_ticks(calm, cuts)
    real, steps = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            raise Cut
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    survived = False
    for kill in range(1, 200):
        stormy = tmp_path / f"stormy{kill}"
        shutil.copytree(home, stormy)
        steps = kill
        try:
            some_ticks(stormy, cuts)
            survived = True
        except Cut:
            some_ticks(stormy, cuts)
        assert {n: b for n, b in tree(stormy).items() if ".tmp" not in n} == tree(calm), kill
        shutil.rmtree(stormy)
        if survived:
            break
    assert survived


def test_senders_that_come_together_share_appends_and_lose_nothing(settings):
    home = settings.line_home(SPEC.line)
    with ingesting(settings, SPEC, Pushed()) as client:
        address = f"{client.base_url}/v1/events"

        def send(sender: int) -> int:
            body = {"events": [posted(f"{sender}-{number}") for number in range(5)]}
            return int(httpx.post(address, json=body, trust_env=False).json()["accepted"])

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(send, range(64))) == 320
        with pytest.raises(httpx.ReadTimeout):  # a sender that does not wait for its answer
            httpx.post(address, json={"events": [posted("z")]}, timeout=0.02, trust_env=False)
        assert client.post("/v1/events", json={"events": [posted("y")]}).status_code == 200
    log = FileLog(home / "log" / "events", event_schema(SPEC))
    ids = log.read(0, log.head)["impression_id"].to_pylist()
    assert len(ids) == len(set(ids)) >= 321
    assert "y" in ids
    assert len(list((home / "log" / "events").glob("*.arrow"))) < 40
    assert ticks(home)[-1].events[1] == log.head


def test_a_full_disk_is_named_and_the_sender_is_told(settings, monkeypatch):
    stop, full, said = threading.Event(), threading.Event(), []
    real = os.fsync

    def fsync(handle: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)

    def target() -> None:
        try:
            run(settings, SPEC, stop, Pushed())
        except EnvironmentFault as problem:
            said.append(str(problem))

    thread = threading.Thread(target=target)
    thread.start()
    with httpx.Client(base_url=settings.collector_url, trust_env=False) as client:
        wait_for(lambda: _answers(client))
        client.post("/v1/events", json={"events": [posted("a")]})
        full.set()
        answer = client.post("/v1/events", json={"events": [posted("b")]})
        assert (answer.status_code, "No space" in answer.text) == (503, True)
    wait_for(lambda: not thread.is_alive() or stop.set())
    assert "make room" in said[0]
    full.clear()
    with ingesting(settings, SPEC, Pushed()) as client:
        assert client.post("/v1/events", json={"events": [posted("b")]}).status_code == 200
    counts = account(settings, SPEC)
    assert (counts["appended"], counts["lost"]) == (2, 0)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
