"""The real service, `headrace ingest` with Feast on SQLite, stopped and killed under traffic."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.account import account
from headrace.declaration import LineSpec
from headrace.events import event_schema
from headrace.log.files import FileLog
from headrace.log.stamp import clock_us
from headrace.sample import ticks
from headrace.settings import Settings, find_line, load_settings
from headrace.simulate.outbox import Outbox
from headrace.simulate.truth import TruthLog, read_truth
from headrace.store import Store
from tests.campaign import answers, free_port, posted, wait_for
from tests.faults.told import tell
from tests.lives import Lives

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

KILLS = 10
STOP_S = 120  # some seconds on an idle machine; a tick under way is finished, however slow


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HEADRACE_HOME": str(tmp_path), "HEADRACE_COLLECTOR_PORT": str(free_port())}


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    applied = load_settings(environ)
    Store(applied).apply()
    return applied


@pytest.fixture
def spec(settings: Settings) -> LineSpec:
    return find_line(settings, "coupons")


def ingest() -> None:
    """`headrace ingest` in a fork that has imported everything."""
    from headrace.cli import main

    sys.argv = ["headrace", "ingest", "--line", "coupons"]
    main()


@contextmanager
def service(settings: Settings, environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The command itself, from its first answer on."""
    command = [str(Path(sys.executable).with_name("headrace")), "ingest", "--line", "coupons"]
    process = subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=settings.collector_url, trust_env=False) as client:
            wait_for(lambda: answers(client) or process.poll() is not None, 60)
        yield process
    finally:
        process.kill()
        process.communicate()


def logged(settings: Settings, spec: LineSpec) -> pa.Table:
    log = FileLog(settings.line_home(spec.line) / "log" / "events", event_schema(spec))
    return log.read(0, log.head)


def test_a_stopped_service_answers_what_it_took_and_reads_it(settings, environ, spec):
    told, outcomes, stopped = [], Counter(), threading.Event()

    def send(sender: int) -> None:
        with httpx.Client(base_url=settings.collector_url, trust_env=False, timeout=20) as client:
            for number in range(10_000):
                ids = [f"{sender}-{number}-{part}" for part in range(5)]
                try:
                    body = {"events": [posted(which) for which in ids]}
                    answer = client.post("/v1/events", json=body)
                except httpx.TransportError:
                    outcomes["no connection"] += 1
                    return
                outcomes[answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.json()["reason"] == "stopping"
                    return
                told.extend(ids)
                if stopped.is_set():
                    outcomes["taken while stopping"] += 1

    with service(settings, environ) as process, ThreadPoolExecutor(8) as pool:
        senders = [pool.submit(send, sender) for sender in range(8)]
        slow = socket.create_connection((settings.host, settings.collector_port))
        slow.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        wait_for(lambda: outcomes[200] > 50)
        stopped.set()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # impatience changes nothing
        _, complaints = process.communicate(timeout=STOP_S)
        slow.settimeout(5)
        refused = slow.recv(65536)
        slow.close()
        for sender in senders:
            sender.result()
    assert (process.returncode, "Traceback" in complaints) == (0, False), complaints
    assert b"408" in refused
    assert outcomes["taken while stopping"] >= 1
    assert outcomes[503] + outcomes["no connection"] == 8
    ids = logged(settings, spec)["impression_id"].to_pylist()
    assert sorted(ids) == sorted(told)
    assert ticks(settings.line_home(spec.line))[-1].events[1] == len(ids)


def campaign(outbox: Outbox, seconds: float) -> int:
    """Impressions and clicks that fall due one after the other; how many."""
    dice, start, count = random.Random(3), clock_us(), int(seconds * 60)
    for number in range(count):
        due = start + int(number / 60 * 1e6)
        shown = posted(
            f"i{number}", user_id=f"u{dice.randrange(20)}", item_id=f"c{dice.randrange(6)}",
            category="xyz"[dice.randrange(3)], event_at=due,
        )  # fmt: skip
        outbox.put(due, shown)
        if number % 5 == 0:
            later = due + dice.randrange(1_000_000)
            outbox.put(later, posted(f"i{number}", "click", event_at=later))
    return count + (count + 4) // 5


def test_a_killed_service_loses_no_acknowledged_event_and_no_feature_row(settings, environ, spec):
    home, truth = settings.line_home(spec.line), TruthLog(settings.home / "truth", "kills")
    outbox = Outbox(f"{settings.collector_url}/v1/events", truth)
    dice, answered, killed_at = random.Random(11), 0, []
    preload = ("feast", "pandas", "uvicorn", "pyarrow.dataset", "headrace.ingest.collector")
    with Lives("tests.e2e.test_ingest_service:ingest", preload, **environ) as lives:
        events = campaign(outbox, 18.0)
        outbox.start()
        for _ in range(KILLS):
            before = outbox.counts["accepted"]
            life = lives.live(kill_after_s=dice.uniform(1.5, 3.5))
            assert life.killed
            killed_at.append(clock_us())
            answered += outbox.counts["accepted"] > before
    assert answered >= KILLS // 2
    with service(settings, environ) as process:
        wait_for(lambda: outbox.counts["accepted"] == events, 120)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_S)
        assert process.returncode == 0
    outbox.close()
    truth.flush()
    assert outbox.counts["http_errors"] > 0
    acknowledged = key_counts(read_truth(settings.home, "sent"))
    stored = key_counts(logged(settings, spec))
    assert set(acknowledged.values()) == {1}
    assert len(acknowledged) == events
    assert acknowledged.keys() == stored.keys()
    counts = account(settings, spec)
    twice = counts["duplicate_impression"] + counts["duplicate_engagement"]
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    assert counts["appended"] - counts["mark"] - events == twice  # sent again, counted once
    assert ticks(home)[-1].events[1] == counts["appended"]
    assert online(settings, spec) == last_parts(home, spec)
    tell(
        "collector_kills",
        "`headrace ingest` under traffic killed by SIGKILL at random moments",
        "tests/e2e/test_ingest_service.py",
        {"with events acknowledged in that life": answered, "without": KILLS - answered},
        "every acknowledged event stored, and the newest row of every key online",
        {name: counts[name] for name in ("lost", "duplicated")},
        list(recovered_s(settings, killed_at)),
        [twice],  # acknowledged by a life that died before its answer arrived
        "events sent again",
    )


def recovered_s(settings: Settings, killed_at: list[int]) -> Iterator[float]:
    """Seconds from each kill to the next acknowledgement, if that came before the next kill."""
    moments = read_truth(settings.home, "sent")["acknowledged_at"].cast(pa.int64()).to_pylist()
    for at_us, following_us in zip(killed_at, [*killed_at[1:], clock_us()], strict=True):
        later = [moment for moment in moments if at_us < moment < following_us]
        if later:
            yield (min(later) - at_us) / 1e6


def key_counts(events: pa.Table) -> Counter[tuple[str, str]]:
    """How often each event is there; marks are the service's own."""
    names, ids = events["event"].to_pylist(), events["impression_id"].to_pylist()
    return Counter(key for key in zip(names, ids, strict=True) if key[0] != "mark")


def last_parts(home: Path, spec: LineSpec) -> dict[tuple[str, Any], dict[str, Any]]:
    """The newest committed row of each key, by view."""
    found = {}
    for manifest in ticks(home):
        for view, path in manifest.features.items():
            key = spec.views[view][0].key
            for row in pq.read_table(home / path, partitioning=None).to_pylist():
                values = {feature.name: row[feature.name] for feature in spec.views[view]}
                found[view, tuple(row[part] for part in key)] = values | {"at": row[f"{view}__at"]}
    return found


def online(settings: Settings, spec: LineSpec) -> dict[tuple[str, Any], dict[str, Any]]:
    """What Feast's online store holds for the same keys."""
    wanted = list(last_parts(settings.line_home(spec.line), spec))
    columns = {name: [None] * len(wanted) for name in spec.columns}
    for place, (view, key) in enumerate(wanted):
        for name, part in zip(spec.views[view][0].key, key, strict=True):
            columns[name][place] = part
    schema = event_schema(spec)
    asked = pa.table({name: pa.array(v, schema.field(name).type) for name, v in columns.items()})
    moments = pa.array(np.full(len(wanted), clock_us()), pa.int64())
    rows = Store(settings).read_online(spec, asked.append_column("request_at", moments)).to_pylist()
    found = {}
    for (view, key), row in zip(wanted, rows, strict=True):
        values = {feature.name: row[feature.name] for feature in spec.views[view]}
        at_us = row[f"{view}__at"]
        found[view, key] = values | {"at": at_us and round(at_us.timestamp() * 1e6)}
    return found
