"""A coupon campaign for the tests of ingest: its line, its events, and the service in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from prometheus_client.parser import text_string_to_metric_families

from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.ingest.limits import Limits
from headrace.ingest.online import Online
from headrace.ingest.service import run
from headrace.log.files import FileLog
from headrace.log.stamp import clock_us
from headrace.settings import PROJECT, Settings

SECOND = 1_000_000
GIVEN: set[int] = set()  # ports


def free_port() -> int:
    """A port that nobody listens on, and that no earlier call gave: the kernel may repeat one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    if port in GIVEN:
        return free_port()
    GIVEN.add(port)
    return port


def line(**changes: Any) -> LineSpec:
    raw = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text())
    raw["cadence"]["tick"] = "200ms"
    return LineSpec.model_validate(raw | changes)


SPEC = line()


class Nowhere:
    """An online store that nobody reads."""

    def push(self, view: str, rows: pa.Table) -> None: ...

    def mark_us(self, view: str) -> int | None: ...

    def clear(self, view: str) -> None: ...


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


def tree(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@contextmanager
def ingesting(
    settings: Settings, spec: LineSpec, online: Online, limits: Limits | None = None
) -> Iterator[httpx.Client]:
    """The service in a thread, until the block ends; a client that reaches it."""
    stop, failed = threading.Event(), []

    def target() -> None:
        try:
            run(settings, spec, stop, online, limits)
        except Exception as problem:  # noqa: BLE001
            failed.append(problem)

    thread = threading.Thread(target=target)
    thread.start()
    try:
        with httpx.Client(base_url=settings.collector_url, trust_env=False) as client:
            wait_for(lambda: answers(client) or failed)
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


def wait_for(true: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def value_of(page: str, name: str, **labels: str) -> float:
    """One value of a page in Prometheus' text format; 0 for a series that is not there (yet)."""
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0
