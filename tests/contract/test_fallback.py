"""Who stands in where features or model are missing: marked, at once, and only for as long."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from bench._redis import RedisServer, installed
from headrace.bits import bits
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import ARROW_TYPES, TIME
from headrace.feature_rows import feature_table
from headrace.line import LineStore
from headrace.model import Model
from headrace.serving.app import create_app
from headrace.serving.features import LOST_US, Features
from headrace.serving.prior import Prior, Rates
from headrace.serving.resident import blank_inputs
from headrace.settings import Settings
from headrace.store import Store
from headrace.store.latest import Found, found_none
from headrace.store.sqlite import HeadraceSqliteOnlineStore, HeadraceSqliteOnlineStoreConfig
from tests.serving import WATERMARK_US, advance, served_rows, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

ASKED = {"context": {"user_id": "ann"}, "candidates": [{"item": 1}, {"item": 2}]}


class Away:
    """A store that answers, or takes its time to fail."""

    def __init__(self) -> None:
        self.away, self.calls, self.mark = False, 0, WATERMARK_US

    def look_up(self, spec: LineSpec, asked: pa.Table) -> Found:
        self.calls += 1
        if self.away:
            time.sleep(0.3)
            raise EnvironmentFault("online store: Timeout")
        return Found(dict.fromkeys(spec.views, self.mark), found_none(spec, asked.num_rows).rows)


def asked(spec: LineSpec, users: list[str]) -> pa.Table:
    columns = {name: pa.nulls(len(users), ARROW_TYPES[kind]) for name, kind in spec.columns.items()}
    columns |= {"user_id": pa.array(users), "item": pa.array([7] * len(users))}
    return pa.table(columns | {"request_at": pa.array([WATERMARK_US] * len(users))})


@contextmanager
def reading(spec: LineSpec, store: object) -> Iterator[Features]:
    features = Features(spec, store, retry_s=0.05)  # type: ignore[arg-type]
    features.start()
    try:
        yield features
    finally:
        features.stop()


def test_an_outage_costs_who_was_under_way_one_time_out_and_later_requests_nothing(shop):
    store = Away()
    with reading(shop, store) as features:
        features.read(asked(shop, ["ann"]))
        store.away, before, took = True, store.calls, []

        def ask() -> None:
            began = time.monotonic()
            with pytest.raises(EnvironmentFault, match="Timeout"):
                features.read(asked(shop, ["ann"]))
            took.append(time.monotonic() - began)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.calls - before <= 3  # one by a request, others by who asks again
        assert max(took) < 1.5  # eight in a row would wait for 2.4 s
        took.clear()
        for _ in range(20):
            ask()
        assert sorted(took)[10] < 0.1
        store.away = False
        until(lambda: features.fault is None)
        features.read(asked(shop, ["ann"]))
        assert features.outages == 1


def test_a_store_that_lost_its_rows_is_missing_until_it_has_them_again(shop):
    store = Away()
    with reading(shop, store) as features:
        features.read(asked(shop, ["ann"]))
        store.mark = WATERMARK_US - 1_000_000  # the seconds that Redis may forget
        features.read(asked(shop, ["ann"]))
        for lost in (None, WATERMARK_US - LOST_US - 1):
            store.mark = lost
            with pytest.raises(
                EnvironmentFault, match=r"it lost rows, which .*ingest.* pushes again"
            ):
                features.read(asked(shop, ["ann"]))
            time.sleep(0.2)
            assert features.fault is not None
            store.mark = WATERMARK_US + 5
            until(lambda: features.fault is None)


def test_defaults_are_what_a_key_reads_as_that_was_never_seen(applied, shop):
    store, question = Store(applied), asked(shop, ["nobody", "none"])
    with reading(shop, store) as features:
        found = feature_table(shop, features.defaults(question))
        wanted = store.read_online(shop, question)
        assert found.schema == wanted.schema
        for name in wanted.column_names:
            if pa.types.is_floating(wanted[name].type):
                assert np.array_equal(bits(found[name]), bits(wanted[name]))
            else:
                assert found[name].to_pylist() == wanted[name].to_pylist()


def test_an_online_store_that_cannot_be_read_is_named_and_opened_again(apply_lines, tmp_path, shop):
    settings = apply_lines(tmp_path)
    path = settings.home / "feast" / "online.db"
    store, question = Store(settings, timeout_s=0.05), asked(shop, ["ann"])
    path.rename(tmp_path / "kept.db")
    path.mkdir()
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=r"online store .*unable to open.*headrace up"):
            store.look_up(shop, question)
    path.rmdir()
    (tmp_path / "kept.db").rename(path)
    assert store.read_online(shop, question).num_rows == 1


def test_a_lock_on_the_online_store_is_waited_for_no_longer_than_declared(tmp_path):
    held = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    held.execute("PRAGMA locking_mode=EXCLUSIVE")
    held.execute("BEGIN EXCLUSIVE")
    config = SimpleNamespace(
        online_store=HeadraceSqliteOnlineStoreConfig(path="online.db", timeout_s=0.05),
        repo_path=tmp_path,
    )
    store = HeadraceSqliteOnlineStore()
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.check(config)
        assert time.monotonic() - began < 3  # SQLite's own is 5
    held.close()
    store.check(config)


def publish(settings: Settings, spec: LineSpec, bias: float, *, hurt: bool = False) -> str:
    """A version of the label rate 0.25; a hurt one knows finite scores for nearly no id."""
    model = Model(spec.model, spec.seed)
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


def prompt(seconds: Iterable[float]) -> bool:
    """Whether answers came at once, but for those that were under way (and a busy machine)."""
    median, most, slowest = np.quantile(list(seconds), (0.5, 0.9, 1))
    return median < 0.1 and most < 0.4 and slowest < 4  # each would wait for 0.25 s, or 5 s


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
def test_while_redis_restarts_requests_are_answered_at_once_and_marked(tmp_path, apply_lines, shop):
    if not installed():
        pytest.skip("redis-server is not installed")
    redis = RedisServer(tmp_path, "h@sh")
    redis.start()
    settings = apply_lines(tmp_path, HEADRACE_ONLINE_STORE=redis.url)
    at_us = time.time_ns() // 1_000
    pushed(settings, shop, at_us)
    advance(settings, shop, publish(settings, shop, 1.0))
    answers: list[tuple[float, str, float]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            body = told(client)
            answers.append((began, body["fallback"], time.monotonic() - began))

    def since(moment: float) -> list[tuple[str, float]]:
        return [(fallback, took) for began, fallback, took in answers if began >= moment]

    with serving(settings, shop) as client:
        until(lambda: ready(client) and told(client)["fallback"] == "none")
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.5)
            redis.stop()
            down = time.monotonic()
            time.sleep(2)
            redis.start()
            time.sleep(1)  # it is empty: what it answers would be wrong
            found = since(down)
            assert {fallback for fallback, _ in found[5:]} == {"defaults"}
            assert prompt(took for _, took in found)
            pushed(settings, shop, at_us)
            until(lambda: answers[-1][1] == "none")
            process = redis._process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)  # it takes connections and says nothing
            hung = time.monotonic()
            time.sleep(2)
            os.kill(process.pid, signal.SIGCONT)
            until(lambda: answers[-1][1] == "none")
            found = [one for one in since(hung) if one[0] == "defaults"]
            assert len(found) > 20
            assert prompt(took for _, took in found)
        finally:
            done.set()
            for thread in threads:
                thread.join()
            redis.stop()
