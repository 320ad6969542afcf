"""A crowd, a slow disk, a slow store, a full disk: refused with a reason, nothing lost or half."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from headrace.account import account
from headrace.errors import DeclarationError, EnvironmentFault
from headrace.events import event_schema
from headrace.ingest.collector import Collector
from headrace.ingest.limits import Admission, Limits, Refusal, free_bytes
from headrace.ingest.metrics import IngestMetrics
from headrace.ingest.service import run
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from headrace.sample import ticks
from headrace.settings import Settings, load_settings
from tests.campaign import SPEC, Pushed, ingesting, posted, value_of, wait_for


class Crowd:
    """Senders that post batches until each is taken, and what they were answered."""

    def __init__(self, address: str, senders: int, batches: int, events: int) -> None:
        self.address, self.batches, self.events = address, batches, events
        self.reasons: Counter[str] = Counter()
        self.acknowledged: list[str] = []
        with ThreadPoolExecutor(senders) as pool:
            for ids in pool.map(self._send, range(senders)):
                self.acknowledged += ids

    def _send(self, sender: int) -> list[str]:
        taken: list[str] = []
        with httpx.Client(trust_env=False, timeout=30) as client:
            for batch in range(self.batches):
                ids = [f"{sender}-{batch}-{number}" for number in range(self.events)]
                body = {"events": [posted(which) for which in ids]}
                while (answer := client.post(self.address, json=body)).status_code != 200:
                    assert answer.status_code == 429, answer.text
                    assert int(answer.headers["retry-after"]) >= 1
                    said = answer.json()
                    assert "send again later" in said["detail"]
                    self.reasons[said["reason"]] += 1
                    time.sleep(0.05)
                assert answer.json() == {"accepted": self.events, "malformed": 0}
                taken += ids
        return taken


@contextmanager
def watched(address: str, *names: str) -> Iterator[dict[str, float]]:
    """The largest value that each metric had while the block ran."""
    most, stop = dict.fromkeys(names, 0.0), threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            page = httpx.get(f"{address}/metrics", trust_env=False, timeout=30).text
            for name in names:
                most[name] = max(most[name], value_of(page, name))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def logged(home: Path) -> list[str]:
    log = FileLog(home / "log" / "events", event_schema(SPEC))
    return [str(which) for which in log.read(0, log.head)["impression_id"].to_pylist()]


class Slow(Pushed):
    """An online store that takes its time."""

    def push(self, view: str, rows: pa.Table) -> None:
        time.sleep(0.05)
        super().push(view, rows)


@pytest.mark.slow
def test_a_crowd_before_a_slow_store_is_slowed_down_and_every_event_is_stored_once(settings):
    home = settings.line_home(SPEC.line)
    limits = Limits(queue_rows=300, tick_events=200, behind_events=400)

    names = ("headrace_ingest_queue_rows", "headrace_ingest_events_behind")
    with (
        ingesting(settings, SPEC, Slow(), limits) as client,
        watched(str(client.base_url), *names) as most,
    ):
        crowd = Crowd(f"{client.base_url}/v1/events", senders=12, batches=4, events=40)
    assert sorted(logged(home)) == sorted(crowd.acknowledged)
    assert len(set(crowd.acknowledged)) == 12 * 4 * 40
    assert crowd.reasons["queue_full"] > 0
    assert crowd.reasons["behind"] > 0
    assert 0 < most["headrace_ingest_queue_rows"] <= 300
    assert 400 < most["headrace_ingest_events_behind"] <= 400 + 300
    sizes = [manifest.events[1] - manifest.events[0] for manifest in ticks(home)]
    assert sum(sizes) == len(crowd.acknowledged)
    assert max(sizes) <= 300  # a single append of all that may wait; otherwise 200


class SlowWriter(EventWriter):
    """A log on a slow disk."""

    def append(self, records: pa.Table) -> int:
        time.sleep(0.2)
        return super().append(records)


def test_a_crowd_before_a_slow_disk_waits_outside(settings):
    home = settings.line_home(SPEC.line)
    limits = Limits(queue_rows=100, queue_bytes=20_000)
    writer = SlowWriter(home / "log" / "events", SPEC)
    admission = Admission(limits, home, 0, lambda: 0)
    collector = Collector(settings, SPEC, writer, admission, IngestMetrics(SPEC))
    collector.start()
    try:
        names = ("headrace_ingest_queue_rows", "headrace_ingest_queue_bytes")
        with watched(settings.collector_url, *names) as most:
            crowd = Crowd(f"{settings.collector_url}/v1/events", senders=8, batches=2, events=20)
    finally:
        collector.stop()
        writer.close()
    assert sorted(logged(home)) == sorted(crowd.acknowledged)
    assert crowd.reasons["queue_full"] > 0
    assert 0 < most["headrace_ingest_queue_rows"] <= 100
    assert 0 < most["headrace_ingest_queue_bytes"] <= 20_000
    assert (admission.rows, admission.bytes) == (0, 0)


def test_impressions_that_are_sent_again_count_once(settings):
    home, batch = settings.line_home(SPEC.line), {"events": [posted("a"), posted("b")]}
    with ingesting(settings, SPEC, Pushed()) as client:
        for _ in range(3):
            assert client.post("/v1/events", json=batch).json()["accepted"] == 2
        wait_for(lambda: client.get("/v1/status").json()["events_to"] == 6)
    assert sorted(logged(home)) == ["a", "a", "a", "b", "b", "b"]
    counts = account(settings, SPEC)
    assert (counts["duplicate_impression"], counts["pending"], counts["lost"]) == (4, 2, 0)


def half_sent(settings: Settings, length: int, sent: int) -> socket.socket:
    """A connection on which `sent` bytes of a body of `length` have come."""
    sender = socket.create_connection((settings.host, settings.collector_port))
    head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    sender.sendall(head.encode() + b" " * sent)
    return sender


def said(sender: socket.socket) -> bytes:
    sender.settimeout(10)
    with sender:
        return sender.recv(65536)


def test_large_bodies_and_slow_ones_are_refused_whatever_their_header_claims(settings):
    home = settings.line_home(SPEC.line)
    limits = Limits(body_bytes=2000, body_events=5, body_s=0.4, queue_bytes=2500)
    with ingesting(settings, SPEC, Pushed(), limits) as client:
        large = json.dumps({"events": [posted("a")], "x": "x" * 3000}).encode()

        def in_chunks() -> Iterator[bytes]:
            for start in range(0, len(large), 100):
                yield large[start : start + 100]

        for body in (large, in_chunks()):
            answer = client.post("/v1/events", content=body)
            assert (answer.status_code, answer.json()["reason"]) == (413, "body_too_large")
            assert "2000 bytes" in answer.json()["detail"]
            assert "retry-after" not in answer.headers
        many = client.post("/v1/events", json={"events": [7] * 6})
        assert (many.status_code, many.json()["reason"]) == (413, "too_many_events")
        held = half_sent(settings, 1900, 1800)
        wait_for(lambda: value_of(client.get("/metrics").text, "headrace_ingest_queue_bytes") > 0)
        assert b'"queue_full"' in said(half_sent(settings, 1900, 1800))
        assert b'"body_too_slow"' in said(held)
        half_sent(settings, 1900, 1800).close()
        page = "headrace_ingest_requests_refused_total"
        for reason in ("sender_left", "body_too_slow", "body_too_large", "too_many_events"):
            wait_for(lambda: value_of(client.get("/metrics").text, page, reason=reason) > 0)  # noqa: B023
        assert value_of(client.get("/metrics").text, "headrace_ingest_queue_bytes") == 0
        assert client.post("/v1/events", json={"events": [posted("b")]}).status_code == 200
    assert logged(home) == ["b"]
    assert (home / "malformed.jsonl").read_text() == ""


def test_more_connections_than_allowed_are_told_at_once(settings):
    with ingesting(settings, SPEC, Pushed(), Limits(connections=3)) as client:
        idle = [socket.create_connection((settings.host, settings.collector_port)) for _ in "12"]
        wait_for(lambda: client.post("/v1/events", json={"events": []}).status_code == 503)
        for connection in idle:
            connection.close()
        wait_for(lambda: client.post("/v1/events", json={"events": []}).status_code == 200)


def test_a_disk_that_fills_is_refused_before_it_is_full(settings, tmp_path):
    floor = free_bytes(tmp_path) + 2**40
    low = replace(settings, min_free_bytes=floor)
    with pytest.raises(EnvironmentFault, match="HEADRACE_MIN_FREE_MB"):
        run(low, SPEC, threading.Event(), Pushed())
    admission = Admission(Limits(), tmp_path, floor, lambda: 0)
    with pytest.raises(Refusal) as refused, admission.request():
        pass
    assert (refused.value.status, refused.value.reason) == (503, "disk_low")
    assert "make room" in refused.value.detail
    assert refused.value.retry_after_s == 30


def test_the_floor_of_the_disk_is_a_setting():
    assert load_settings({"HEADRACE_MIN_FREE_MB": "3"}).min_free_bytes == 3 * 2**20
    for wrong in ("-1", "1.5", "2GB"):
        with pytest.raises(DeclarationError, match="HEADRACE_MIN_FREE_MB"):
            load_settings({"HEADRACE_MIN_FREE_MB": wrong})


def test_a_request_too_many_is_told_before_its_body_is_read(tmp_path):
    admission = Admission(Limits(behind_events=10), tmp_path, 0, lambda: 11)
    with pytest.raises(Refusal, match="11 stored events") as refused, admission.request():
        pass
    assert refused.value.reason == "behind"
    admission = Admission(Limits(), tmp_path, 0, lambda: 0)
    admission.stopping = True
    with pytest.raises(Refusal) as refused, admission.request():
        pass
    assert (refused.value.status, refused.value.reason) == (503, "stopping")


class Outage(Pushed):
    """An online store that does not answer until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.tries = threading.Event(), 0

    def push(self, view: str, rows: pa.Table) -> None:
        self.tries += 1
        if not self.back.is_set():
            raise ConnectionError("store unreachable")
        super().push(view, rows)


def test_an_outage_of_the_online_store_delays_ticks_and_loses_no_row(settings):
    home, online = settings.line_home(SPEC.line), Outage()
    with ingesting(settings, SPEC, online) as client:
        client.post("/v1/events", json={"events": [posted("a")]})
        wait_for(lambda: online.tries > 1)
        assert client.post("/v1/events", json={"events": [posted("b")]}).status_code == 200
        page = client.get("/metrics").text
        assert value_of(page, "headrace_ingest_push_failures_total") >= 1
        assert value_of(page, "headrace_ingest_events_behind") == 1
        online.back.set()
        wait_for(lambda: value_of(client.get("/metrics").text, "headrace_ingest_ticks_total") == 2)
    pushed = [(view, rows[f"{view}__at"][0].as_py()) for view, rows in online.calls]
    assert set(pushed) == {(view, tick.at_us) for tick in ticks(home) for view in tick.features}
    assert [at_us for _, at_us in pushed] == sorted(at_us for _, at_us in pushed)


def test_a_stop_in_an_outage_says_so_and_the_next_start_pushes(settings):
    home, stop, failed = settings.line_home(SPEC.line), threading.Event(), Outage()
    said_so: list[str] = []

    def target() -> None:
        try:
            run(settings, SPEC, stop, failed)
        except EnvironmentFault as problem:
            said_so.append(str(problem))

    thread = threading.Thread(target=target)
    thread.start()
    with httpx.Client(base_url=settings.collector_url, trust_env=False) as client:
        wait_for(lambda: posts(client))
    wait_for(lambda: failed.tries > 0)
    stop.set()
    thread.join()
    assert "online store" in said_so[0]
    assert "start again" in said_so[0]
    again = Pushed()
    with ingesting(settings, SPEC, again):
        pass
    assert {view for view, _ in again.calls} == ticks(home)[-1].features.keys()


def posts(client: httpx.Client) -> bool:
    try:
        return client.post("/v1/events", json={"events": [posted("a")]}).status_code == 200
    except httpx.TransportError:
        return False
