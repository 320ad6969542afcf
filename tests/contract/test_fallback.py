"""Who stands in where features or model are missing: marked, at once, and only for as long."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench._redis import RedisServer, installed
from headrace.declaration import LineSpec
from headrace.events import TIME
from headrace.line import LineStore
from headrace.serving.app import create_app
from headrace.serving.prior import Prior, Rates
from headrace.serving.resident import blank_inputs
from headrace.settings import Settings
from headrace.store import Store
from headrace.store.latest import Found
from tests.serving import WATERMARK_US, advance, served_rows, until, untrained

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

ASKED = {"context": {"user_id": "ann"}, "candidates": [{"item": 1}, {"item": 2}]}


def publish(settings: Settings, spec: LineSpec, bias: float, *, hurt: bool = False) -> str:
    """A version of the label rate 0.25; a hurt one knows finite scores for nearly no id."""
    model = untrained(spec)
    state = model.state()
    state["classes"] = np.array([10.0 * bias, 10.0])
    if hurt:
        ids, _ = model._read(blank_inputs(spec))
        kept = np.zeros(len(state["table"]), dtype=np.bool_)
        kept[np.unique(model._tables.rows(ids, slice(0, 1)))] = True
        state["table"] = np.where(kept[:, None], state["table"], np.nan).astype(np.float32)
    about = {"from_tick": 0, "to_tick": 1, "excluded": [], "feature_service": spec.feature_service}
    about |= {"watermark_us": WATERMARK_US, "event_at_us": 1, "code": "test", "rows": 0}
    return (
        LineStore(settings.line_store_url(spec.line), spec.line)
        .publish(state, parent=None, metrics={"label_rate": 0.25}, **about)
        .version
    )


@pytest.fixture
def fresh(applied: Settings, tmp_path: Path) -> Settings:
    """A home without versions, over the applied one's features."""
    home = tmp_path / "fresh"
    home.mkdir()
    (home / "feast").symlink_to(applied.home / "feast")
    return replace(applied, home=home)


def serving(settings: Settings, spec: LineSpec, **declared: object) -> TestClient:
    own = spec.serving.model_copy(update=declared)
    return TestClient(create_app(settings, spec.model_copy(update={"serving": own})))


def ready(client: TestClient) -> bool:
    return client.get("/v2/health/ready").status_code == 200


def told(client: TestClient, request_id: str | None = None) -> dict:
    answer = client.post("/v1/score", json={"request_id": request_id, **ASKED})
    assert answer.status_code == 200, answer.text
    return answer.json()


def damaged(settings: Settings, spec: LineSpec, version: str) -> Callable[[], object]:
    """Tear a version's file; returns what repairs it."""
    (path,) = (settings.line_home(spec.line) / "versions" / version).glob("state*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    return lambda: path.write_bytes(whole)


def test_without_a_model_the_prior_answers_and_says_so_until_there_is_one(fresh, shop):
    champion = publish(fresh, shop, 1.0)
    advance(fresh, shop, champion)
    repair = damaged(fresh, shop, champion)
    with serving(fresh, shop) as client:
        until(lambda: client.app.state.models.tried)
        assert not ready(client)
        body = told(client, "p1")
        assert (body["version"], body["fallback"]) == ("prior", "prior")
        assert [score["score"] for score in body["scores"]] == [0.25, 0.25]
        assert body["watermark"] == "2025-06-15T15:06:40.000+00:00"
        tensor = {"name": "item", "shape": [1], "datatype": "INT64", "data": [1]}
        answer = client.post("/v2/models/shop/infer", json={"inputs": [tensor]}).json()
        assert (answer["model_version"], answer["parameters"]["fallback"]) == ("prior", "prior")
        delivery = client.get("/v2/models/shop").json()["delivery"]
        assert delivery["fallback"]["answers"] == {"defaults": 0, "previous": 0, "prior": 2}
        assert delivery["missed"] == champion
        shown = client.get("/v1/status").json()["fallback"]
        assert (shown["recent"], shown["missing"]) == (delivery["fallback"]["answers"], None)
        until(lambda: len(served_rows(fresh, shop, "p1")) == 2)
        logged = {(r["version"], r["fallback"], r["score"]) for r in served_rows(fresh, shop, "p1")}
        assert logged == {("prior", "prior", 0.25)}
        pinned = client.post("/v1/score", json=ASKED, headers={"x-headrace-version": champion})
        assert pinned.status_code == 503  # who asks for a version wants no other
        repair()
        until(lambda: ready(client))
        assert (told(client)["version"], told(client)["fallback"]) == (champion, "none")


def test_a_line_that_never_had_a_champion_answers_only_by_a_declared_constant(fresh, shop):
    publish(fresh, shop, 1.0)
    with serving(fresh, shop) as client:
        until(lambda: client.app.state.models.tried)
        assert client.post("/v1/score", json=ASKED).status_code == 503
    with serving(fresh, shop, prior=0.03) as client:
        until(lambda: client.app.state.models.tried)
        body = told(client)
        assert (body["scores"][0]["score"], body["watermark"], body["staleness_s"]) == (
            0.03, None, None
        )  # fmt: skip


def test_a_line_that_declares_nobody_is_refused_as_before(fresh, shop):
    champion = publish(fresh, shop, 1.0)
    advance(fresh, shop, champion)
    damaged(fresh, shop, champion)
    with serving(fresh, shop, fallback=()) as client:
        until(lambda: client.app.state.models.tried)
        answer = client.post("/v1/score", json=ASKED)
        assert (answer.status_code, "not ready" in answer.json()["error"]) == (503, True)


def test_where_scores_are_not_finite_the_version_before_answers(fresh, shop):
    good, hurt = publish(fresh, shop, 1.0), publish(fresh, shop, 2.0, hurt=True)
    advance(fresh, shop, good)
    with serving(fresh, shop) as client:
        until(lambda: ready(client))
        before = told(client)
        assert (before["version"], before["fallback"]) == (good, "none")
        advance(fresh, shop, hurt)
        until(lambda: client.app.state.models.current().version.version == hurt)
        after = told(client)
        assert (after["version"], after["fallback"]) == (good, "previous")
        assert [s["score"] for s in after["scores"]] == [s["score"] for s in before["scores"]]
    with serving(fresh, shop) as client:  # a start holds nothing else in memory at first
        until(lambda: ready(client))
        assert told(client)["fallback"] in ("prior", "previous")
        until(lambda: told(client)["fallback"] == "previous")
        assert told(client)["version"] == good
    with serving(fresh, shop, fallback=("defaults",)) as client:
        until(lambda: ready(client))
        assert client.post("/v1/score", json=ASKED).status_code == 503


def test_a_store_where_the_line_is_not_registered_is_stood_in_for_until_it_is(
    tmp_path, applied, shop
):
    home = tmp_path / "empty"
    settings = replace(applied, home=home)
    advance(settings, shop, publish(settings, shop, 1.0))
    with serving(settings, shop) as client:
        until(lambda: ready(client))
        body = told(client, "d1")
        assert body["fallback"] == "defaults"
        until(lambda: len(served_rows(settings, shop, "d1")) == 2)
        for row in served_rows(settings, shop, "d1"):
            assert (row["fallback"], row["user_views_count_1h"]) == ("defaults", 0)
            assert row["hour"] >= 0  # what needs no store is computed
            assert row["shop_by_user_id__at"] is None
        missing = client.get("/v2/models/shop").json()["delivery"]["fallback"]["missing"]
        assert "headrace up" in missing
        Store(settings).apply()
        until(lambda: told(client)["fallback"] == "none")
    with serving(replace(applied, home=tmp_path / "none"), shop, fallback=("prior",)) as client:
        until(lambda: client.app.state.models.tried)
        assert client.post("/v1/score", json=ASKED).status_code == 503  # no rates either
    with serving(
        replace(applied, home=tmp_path / "none"), shop, fallback=("prior",), prior=0.1
    ) as client:
        until(lambda: client.app.state.models.tried)
        assert told(client)["fallback"] == "defaults,prior"


class Damaged:
    """A line whose store can be made to fail."""

    def __init__(self, lines: LineStore) -> None:
        self._lines, self.away = lines, False

    def __getattr__(self, name: str) -> object:
        if self.away:
            raise OSError("no route to host")
        return getattr(self._lines, name)


def test_rates_are_those_of_the_champion_and_are_kept_while_the_store_is_away(fresh, shop):
    advance(fresh, shop, publish(fresh, shop, 1.0))
    lines, now = Damaged(LineStore(fresh.line_store_url("shop"), "shop")), [0.0]
    prior = Prior(shop, lines, clock_s=lambda: now[0])  # type: ignore[arg-type]
    rates = Rates({"click": 0.25}, WATERMARK_US)
    assert prior.rates() == rates
    lines.away, now[0] = True, 100.0
    assert prior.rates() == rates


def pushed(settings: Settings, spec: LineSpec, at_us: int) -> None:
    """One row of each view, as ingest pushes them after an outage."""
    store = Store(settings)
    keys = {"user_id": "ann", "item": 1}
    for view, features in spec.views.items():
        columns = {name: [keys[name]] for name in features[0].key}
        columns["event_timestamp"] = pa.array([at_us], pa.int64()).cast(TIME)
        columns |= {feature.name: pa.array([9], pa.int64()) for feature in features}
        store.push(spec, view, pa.table(columns))


@pytest.mark.faults
def test_while_redis_restarts_requests_ask_it_no_more_and_are_marked(
    tmp_path, apply_lines, shop, monkeypatch
):
    if not installed():
        pytest.skip("redis-server is not installed")
    redis = RedisServer(tmp_path, "h@sh")
    redis.start()
    settings = apply_lines(tmp_path, HEADRACE_ONLINE_STORE=redis.url)
    at_us = time.time_ns() // 1_000
    pushed(settings, shop, at_us)
    advance(settings, shop, publish(settings, shop, 1.0))
    answers: list[tuple[float, str]] = []
    asked: list[str] = []  # the threads that asked the store, for requests or behind them
    done, look_up = threading.Event(), Store.look_up

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            answers.append((began, told(client)["fallback"]))

    def since(moment: float) -> list[str]:
        return [fallback for began, fallback in answers if began >= moment]

    def heard(store: Store, *arguments: Any) -> Found:
        asked.append(threading.current_thread().name)
        return look_up(store, *arguments)

    def for_requests() -> int:
        return sum(name != "features" for name in asked)

    monkeypatch.setattr(Store, "look_up", heard)
    with serving(settings, shop) as client:
        until(lambda: ready(client) and told(client)["fallback"] == "none")
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.5)
            redis.stop()
            down = time.monotonic()
            asked.clear()
            time.sleep(2)
            redis.start()
            time.sleep(1)  # it is empty: what it answers would be wrong
            found = since(down)
            assert set(found[5:]) == {"defaults"}
            assert for_requests() <= len(threads)  # those that were under way
            pushed(settings, shop, at_us)
            until(lambda: answers[-1][1] == "none")
            process = redis._process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)  # it takes connections and says nothing
            hung = time.monotonic()
            asked.clear()
            time.sleep(2)
            assert for_requests() <= len(threads)
            os.kill(process.pid, signal.SIGCONT)
            until(lambda: answers[-1][1] == "none")
            assert since(hung).count("defaults") > 20
        finally:
            done.set()
            for thread in threads:
                thread.join()
            redis.stop()
