"""What the scoring server says of itself: the page, `/v1/status`, `/metrics`."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.line import LineStore
from headrace.quarantine import Quarantine
from headrace.serving.app import create_app
from headrace.serving.chronicle import Chronicle, Lookout
from headrace.serving.metrics import OUTCOMES, RECENT_S, ServingMetrics, outcome_of
from headrace.settings import Settings
from tests.serving import LINE, advance, publish, until

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

GOLDEN = {  # what a dashboard or an alert may rely on: name, type, labels
    "headrace_serving": ("info", {"line", "feature_service"}),
    "headrace_serving_bases_loaded": ("counter", set()),
    "headrace_serving_champion_watermark_timestamp_seconds": ("gauge", set()),
    "headrace_serving_deltas_applied": ("counter", set()),
    "headrace_serving_deltas_refused": ("counter", set()),
    "headrace_serving_feature_rows_from_memory": ("counter", set()),
    "headrace_serving_feature_rows_in_memory": ("gauge", set()),
    "headrace_serving_feature_rows_read": ("counter", set()),
    "headrace_serving_features_timestamp_seconds": ("gauge", set()),
    "headrace_serving_request_seconds": ("histogram", {"protocol"}),
    "headrace_serving_requests": ("counter", {"protocol", "outcome"}),
    "headrace_serving_served_rows": ("counter", set()),
    "headrace_serving_served_rows_shed": ("counter", set()),
    "headrace_serving_served_rows_waiting": ("gauge", set()),
    "headrace_serving_staleness_seconds": ("gauge", set()),
    "headrace_serving_swaps": ("counter", set()),
}


@pytest.fixture(scope="module")
def settings(applied: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("inside")
    (home / "feast").symlink_to(applied.home / "feast")
    return replace(applied, home=home)


@pytest.fixture(scope="module")
def server(settings: Settings, shop: LineSpec) -> Iterator[TestClient]:
    with TestClient(create_app(settings, shop)) as client:
        yield client


def figures(client: TestClient) -> dict[tuple[str, ...], float]:
    """Values of `/metrics` by name and labels."""
    page = client.get("/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_server_tells_of_itself_before_and_after_its_first_champion(server, settings, shop):
    before = server.get("/v1/status").json()
    assert (before["line"], before["champion"], before["label"]) == ("shop", None, "click")
    assert before["latency"]["p50_ms"] is None
    assert np.isnan(figures(server)[("headrace_serving_staleness_seconds",)])
    assert server.post("/v1/score", json={"candidates": [{}]}).status_code == 503

    watermark_us = time.time_ns() // 1_000 - 5_000_000
    first, second = (publish(settings, shop, bias, watermark_us) for bias in (1.0, 2.0))
    store = LineStore(settings.line_store_url("shop"), "shop")
    evidence = {"rows": 812, "candidate_logloss": 0.3, "champion_logloss": 0.31, "finite": True}
    store.put_evidence(second, evidence)
    store.put_verdict(second, {"passed": False, "reasons": ["calibration_within: 2.4"]})
    Quarantine(settings.line_home("shop")).add(4, 9, ["label_rate_within: 0.6"])
    advance(settings, shop, first)
    until(lambda: server.get("/v2/health/ready").status_code == 200)
    for _ in range(3):
        assert server.post("/v1/score", json={"candidates": [{}, {}]}).status_code == 200
    assert server.post("/v1/score", json={"candidates": []}).status_code == 422
    until(lambda: server.get("/v1/status").json()["served_log"]["written_rows"] == 6)
    until(lambda: server.get("/v1/status").json()["story"]["quarantine"]["windows"] == 1)

    status = server.get("/v1/status").json()
    champion = status["champion"]
    assert (champion["version"], champion["watermark_us"]) == (first, watermark_us)
    assert 0 <= status["now_us"] - time.time_ns() // 1_000 + 5_000_000 <= 10_000_000
    assert {name: n for name, n in status["requests"].items() if n} == {
        "answered": 3,
        "refused": 1,
        "unavailable": 1,
    }
    latency = status["latency"]
    assert latency["requests"] == 3
    assert 0 < latency["p50_ms"] <= latency["p99_ms"]
    story = status["story"]
    assert [(one["version"], one["passed"]) for one in story["versions"]] == [
        (second, False),
        (first, None),
    ]
    judged = story["versions"][0]
    assert judged["reasons"] == ["calibration_within: 2.4"]
    assert (judged["evidence"]["rows"], judged["evidence"]["auc"]) == (812, None)
    assert [(move["version"], move["watermark_us"]) for move in story["moves"]] == [
        (first, watermark_us)
    ]
    assert story["quarantine"]["newest"][0]["reasons"] == ["label_rate_within: 0.6"]
    found = figures(server)
    assert found["headrace_serving_requests_total", "answered", "http"] == 3
    assert found["headrace_serving_request_seconds_count", "http"] == 3
    assert found[("headrace_serving_swaps_total",)] == 1
    assert found[("headrace_serving_served_rows_total",)] == 6
    assert 5 <= found[("headrace_serving_staleness_seconds",)] < 300


def test_every_metric_has_its_name_its_type_and_a_help_text(server):
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {
        family.name.removesuffix("_info"): family
        for family in text_string_to_metric_families(answer.text)
        if not family.name.endswith("_created")
    }
    assert found.keys() == GOLDEN.keys()
    for name, family in found.items():
        kind, labels = GOLDEN[name]
        assert family.type == ("gauge" if kind == "info" else kind), name
        assert len(family.documentation) > 10, name
        assert {label for s in family.samples for label in s.labels} - {"le"} == labels, name


def test_the_page_holds_nothing_but_itself(server):
    answer = server.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall("'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    links = set(re.findall(r"(?:src|href)=\"([^\"]*)\"", answer.text))
    assert {link for link in links if not link.startswith("data:")} == {
        "docs",
        "openapi.json",
        "metrics",
    }
    assert " style=" not in answer.text  # the policy would refuse it
    assert "innerHTML" not in answer.text
    assert len(answer.content) < 40_000


def test_times_are_of_the_last_minute_and_percentiles_of_them():
    now = 1000.0
    metrics = ServingMetrics(LINE, clock=lambda: now)
    for _ in range(50):
        metrics.ended("http", "answered", 9.0)
    now += RECENT_S + 1
    for took in range(1, 101):
        metrics.ended("grpc", "answered", took / 1e3)
    metrics.ended("http", "unavailable", 7.0)
    recent = metrics.recent()
    assert (recent.requests, recent.seconds) == (100, RECENT_S)
    assert recent.p50_ms == pytest.approx(50.5)
    assert recent.p99_ms == pytest.approx(99.01)
    assert metrics.counts() == dict.fromkeys(OUTCOMES, 0) | {"answered": 150, "unavailable": 1}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "answered"),
        (404, "refused"),
        (413, "refused"),
        (401, "denied"),
        (403, "denied"),
        (429, "limited"),
        (503, "unavailable"),
        (500, "failed"),
        (None, "left"),
    ],
)
def test_an_outcome_follows_from_the_status(status, outcome):
    assert outcome_of(status) == outcome


def test_a_slow_store_keeps_nobody_waiting_and_a_broken_one_leaves_what_was_known():
    gate, asked, told = threading.Event(), [], []

    def ask() -> dict[str, object]:
        asked.append(threading.current_thread().name)
        if len(asked) == 2:
            gate.wait(10)
        if len(asked) == 3:
            raise EnvironmentFault("the bucket does not exist")
        told.append(len(asked))
        return {"looks": len(asked)}

    async def life() -> None:
        lookout = Lookout(ask, ttl_s=0.05)
        assert (await lookout.seen()).found == {"looks": 1}
        assert (await lookout.seen()).found == {"looks": 1}  # not due yet
        await asyncio.sleep(0.06)
        seen = await asyncio.gather(*(lookout.seen(patience_s=0.05) for _ in range(5)))
        assert (len(asked), told) == (2, [1])  # the second look goes on
        assert {one.found["looks"] for one in seen if one.found} == {1}
        gate.set()
        while (await lookout.seen()).found != {"looks": 2}:
            await asyncio.sleep(0.01)
        while (await lookout.seen()).problem is None:
            await asyncio.sleep(0.05)
        last = await lookout.seen()
        assert (last.found, last.problem) == ({"looks": 2}, "the bucket does not exist")
        lookout.stop()

    asyncio.run(life())
    assert {name.partition("_")[0] for name in asked} == {"chronicle"}


def test_a_look_reads_only_what_is_new(settings, shop, tmp_path):
    own = replace(settings, home=tmp_path)
    for i in range(6):
        advance(own, shop, publish(own, shop, 1.0 + i, 10 + i))
    store = LineStore(own.line_store_url("shop"), "shop")
    for name in store.latest(6):
        store.put_verdict(name, {"passed": True, "reasons": []})
    chronicle = Chronicle(store, tmp_path)
    first = chronicle.look()
    read: list[str] = []
    before = store.files.read_json

    def counted(name: str) -> dict[str, Any] | None:
        read.append(name)
        return before(name)

    store.files.read_json = counted  # type: ignore[method-assign]
    assert chronicle.look() == first
    assert len([name for name in read if name.startswith("versions/")]) == 3 * 3  # the newest 3
    assert len([name for name in read if name.startswith("champion/")]) <= 2
    advance(own, shop, publish(own, shop, 9.0, 99))
    moves = chronicle.look()["moves"]
    assert [move["watermark_us"] for move in moves] == [99, 15, 14, 13, 12, 11, 10]
    assert [one["version"] for one in first["versions"]] == store.latest(7)[1:]
