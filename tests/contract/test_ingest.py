"""From posted events to committed ticks: nothing lost, nothing twice, all of it pushed."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml

from headrace.account import account
from headrace.errors import EnvironmentFault
from headrace.events import event_schema
from headrace.ingest.service import run
from headrace.log.files import FileLog
from headrace.sample import head_tick, read_samples, ticks
from headrace.settings import PROJECT
from tests.campaign import (
    SPEC,
    Pushed,
    answers,
    ingesting,
    line,
    posted,
    vectors,
    wait_for,
)


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
        wait_for(lambda: answers(client))
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
