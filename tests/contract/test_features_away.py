"""A server whose online store is away, slow or empty: who waits, who is told, and until when."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from pydantic import SecretStr
from redis import ResponseError

from headrace.bits import bits
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import ARROW_TYPES
from headrace.feature_rows import feature_table
from headrace.serving.features import LOST_US, Features
from headrace.store import Store
from headrace.store.latest import Found, found_none
from headrace.store.redis import (
    HeadraceRedisOnlineStore,
    HeadraceRedisOnlineStoreConfig,
    _packed,
)
from headrace.store.sqlite import HeadraceSqliteOnlineStore, HeadraceSqliteOnlineStoreConfig
from tests.serving import WATERMARK_US, until


class Away:
    """A store that answers, or takes its time to fail."""

    def __init__(self) -> None:
        self.away, self.mark = False, WATERMARK_US
        self.callers: list[str] = []  # the thread of each call

    def look_up(self, spec: LineSpec, asked: pa.Table, meanwhile: Callable[[], None]) -> Found:
        self.callers.append(threading.current_thread().name)
        meanwhile()
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
        store.away = True
        store.callers.clear()

        def ask() -> None:
            with pytest.raises(EnvironmentFault, match="Timeout"):
                features.read(asked(shop, ["ann"]))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # one request waited for the store, the other seven for that one; then who asks again
        assert [name for name in store.callers if name != "features"] == store.callers[:1]
        for _ in range(20):
            ask()
        assert set(store.callers[1:]) <= {"features"}
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


class Told(sqlite3.Connection):
    """Keeps what it is told, in order."""

    statements: ClassVar[list[str]] = []

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        self.statements.append(statement)
        return super().execute(statement, *parameters)


def test_a_lock_on_the_online_store_is_waited_for_as_declared(tmp_path, monkeypatch):
    held = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    held.execute("PRAGMA locking_mode=EXCLUSIVE")
    held.execute("BEGIN EXCLUSIVE")
    config = SimpleNamespace(
        online_store=HeadraceSqliteOnlineStoreConfig(path="online.db", timeout_s=0.05),
        repo_path=tmp_path,
    )
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Told))
    store = HeadraceSqliteOnlineStore()
    for _ in range(2):
        Told.statements.clear()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.check(config)
        # before all that may meet the lock: SQLite would wait for five seconds
        assert Told.statements[:2] == ["PRAGMA busy_timeout=50", "PRAGMA journal_mode=WAL"]
    held.close()
    store.check(config)


def test_an_error_among_the_answers_of_redis_is_told_and_not_taken_for_a_row(redis_server):
    online = HeadraceRedisOnlineStore()
    config = HeadraceRedisOnlineStoreConfig(url=SecretStr(redis_server.url))
    client = online._get_client(config)
    client.set("text", "no hash")
    client.hset("hash", mapping={"a": 1})
    good, bad = _packed(b"HMGET", b"hash", b"a"), _packed(b"HMGET", b"text", b"a")
    turns: list[int] = []
    for _ in range(2):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            online._answers(config, [good, bad, good], lambda: turns.append(1))
        assert online._answers(config, [good, good], lambda: turns.append(2)) == [[b"1"], [b"1"]]
    client.delete("text", "hash")  # others read all keys of this Redis
    assert turns == [1, 2, 1, 2]
