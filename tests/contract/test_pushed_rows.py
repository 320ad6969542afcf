"""Rows of Redis that are held in memory: what is read is what Redis holds, whatever happened."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from headrace.declaration import LineSpec
from headrace.feature_rows import feature_part
from headrace.settings import Settings, find_line
from headrace.store import Store, pushed
from tests.contract.stored_rows import T0, asked, bits, rows

VIEW = "shop_by_item"
ITEMS = 12


@pytest.fixture(scope="module")
def over_redis(
    tmp_path_factory: pytest.TempPathFactory, apply_lines: Callable[..., Settings], redis_server
) -> Settings:
    home = tmp_path_factory.mktemp("held")
    return apply_lines(home, HEADRACE_ONLINE_STORE=redis_server.url)


@pytest.fixture(scope="module")
def shop(over_redis: Settings) -> LineSpec:
    return find_line(over_redis, "shop")


@pytest.fixture
def writer(over_redis: Settings, shop: LineSpec) -> Iterator[Store]:
    """A store whose view is empty, and in the end again: others share the Redis."""
    store = Store(over_redis)
    store.clear(VIEW)
    yield store
    store.clear(VIEW)


def _question(shop: LineSpec, items: list[int]):
    return asked(shop, [T0 + 60_000_000] * len(items), user_id=["ann"] * len(items), item=items)


def _row_reads(url: str) -> int:
    return int(Redis.from_url(url).info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"])


def test_rows_that_are_held_are_not_read_again_and_follow_what_is_pushed(
    over_redis: Settings, shop: LineSpec, writer: Store
):
    reader, question = Store(over_redis), _question(shop, [1, 2, 3])
    writer.push(shop, VIEW, rows(shop, VIEW, T0, [(1,), (2,)], 7))
    first = reader.read_online(shop, question)
    assert first["item_sum_1h"].to_pylist()[2] == 0
    before = _row_reads(over_redis.online_store)
    assert bits(reader.read_online(shop, question)) == bits(first)
    writer.push(shop, VIEW, rows(shop, VIEW, T0 + 1, [(2,), (3,)], 9))
    after = reader.read_online(shop, question)
    assert _row_reads(over_redis.online_store) == before
    assert bits(after) == bits(reader.read_by_feast(shop, question)) != bits(first)
    held = reader.holdings()[VIEW]
    assert (held.rows, held.hits, held.misses) == (3, 6, 3)


def test_whatever_is_done_to_the_store_a_reader_sees_what_is_there(
    over_redis: Settings, shop: LineSpec, writer: Store, monkeypatch: pytest.MonkeyPatch
):
    from feast import FeatureStore

    monkeypatch.setattr(pushed, "PUSHED_ROWS", 5)
    monkeypatch.setattr(pushed, "HELD_ROWS", 8)
    monkeypatch.setenv("HEADRACE_ONLINE_STORE", over_redis.online_store or "")
    plain = FeatureStore(repo_path=str(over_redis.home / "feast"))
    reader, chance, now_us = Store(over_redis), random.Random(7), T0

    def push(count: int) -> None:
        keys = [(item,) for item in chance.sample(range(ITEMS), count)]
        writer.push(shop, VIEW, rows(shop, VIEW, now_us, keys, chance.randrange(1000)))

    def foreign():
        part = rows(shop, VIEW, now_us, [(chance.randrange(ITEMS),)], chance.randrange(1000))
        return f"{VIEW}_push", feature_part(shop, VIEW, part).to_pandas()

    def of_feast() -> None:
        plain.push(*foreign())

    def of_feast_awaited() -> None:
        runner.run(plain.push_async(*foreign()))

    def lost() -> None:
        writer.clear(VIEW)

    def many() -> None:
        for _ in range(pushed.PUSHES + 2):
            push(1)

    rare = [lambda: push(6), of_feast, of_feast_awaited, lost, many, lambda: None]
    ways = [lambda: push(2)] * 8 + rare
    with asyncio.Runner() as runner:
        for _ in range(120):
            now_us += chance.choice([0, 1, 1_000_000])
            chance.choice(ways)()
            question = _question(shop, chance.sample(range(ITEMS), chance.randrange(1, 6)))
            assert bits(reader.read_online(shop, question)) == bits(
                reader.read_by_feast(shop, question)
            )
    held = reader.holdings()[VIEW]
    assert held.rows <= 8 + 5 and held.hits > 50 and held.misses > 50


def test_a_push_between_the_mark_and_the_pushes_is_followed(
    over_redis: Settings, shop: LineSpec, writer: Store
):
    reader, question = Store(over_redis), _question(shop, [1, 2])
    writer.push(shop, VIEW, rows(shop, VIEW, T0, [(1,), (2,)], 7))
    reader.read_online(shop, question)
    store = reader._online()
    answers = store._answers

    until_its_mark = 2 * list(shop.views).index(VIEW) + 1

    def late(online, commands, meanwhile):
        got = answers(online, commands[:until_its_mark], meanwhile)
        writer.push(shop, VIEW, rows(shop, VIEW, T0 + 5, [(1,)], 9))
        return got + answers(online, commands[until_its_mark:], meanwhile)

    store._answers = late
    found = reader.read_online(shop, question)
    store._answers = answers
    assert bits(found) == bits(reader.read_by_feast(shop, question))
    assert bits(reader.read_online(shop, question)) == bits(found)
