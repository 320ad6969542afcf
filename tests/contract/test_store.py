"""Feast as Headrace uses it: what is pushed is read, online and in history, bit for bit."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import requests
from headrace.bits import bits as bits_of
from headrace.declaration import MISSING, LineSpec
from headrace.errors import EnvironmentFault
from headrace.feature_rows import feature_part, feature_schema
from headrace.settings import Settings, find_line
from headrace.store import Store
from tests.contract.stored_rows import BIG, HOUR_US, T0, WIDE, asked, bits, rows, stored

if TYPE_CHECKING:
    from feast import FeatureStore


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def applied(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    applied: Settings,
    apply_lines: Callable[..., Settings],
) -> Settings:
    """Settings of an applied home, over each online store."""
    if request.param == "sqlite":
        return applied
    url = request.getfixturevalue("redis_server").url
    return apply_lines(tmp_path_factory.mktemp("redis_home"), HEADRACE_ONLINE_STORE=url)


@pytest.fixture(scope="module")
def shop(applied: Settings) -> LineSpec:
    return find_line(applied, "shop")


@pytest.fixture(scope="module")
def kiosk(applied: Settings) -> LineSpec:
    return find_line(applied, "kiosk")


@pytest.fixture(scope="module")
def store(applied: Settings) -> Store:
    return Store(applied)


@pytest.fixture
def plain(applied: Settings, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Feast's own SDK on the home, as anybody opens it."""
    from feast import FeatureStore

    monkeypatch.setenv("HEADRACE_ONLINE_STORE", applied.online_store or "")
    return FeatureStore(repo_path=str(applied.home / "feast"))


def test_pushed_rows_are_read_with_their_exact_time_and_values(store: Store, shop: LineSpec):
    store.push(shop, "shop_by_user_id", rows(shop, "shop_by_user_id", T0, [("ann",)], 7))
    store.push(shop, "shop_by_item", rows(shop, "shop_by_item", T0 + 1, [(BIG,)], BIG))
    found = store.read_online(shop, asked(shop, [T0 + 5], user_id=["ann"], item=[BIG], price=[2.5]))
    assert found.schema.equals(feature_schema(shop))
    row = found.to_pylist()[0]
    assert found["shop_by_user_id__at"].cast(pa.int64()).to_pylist() == [T0]
    assert found["shop_by_item__at"].cast(pa.int64()).to_pylist() == [T0 + 1]
    assert (row["user_views_count_1h"], row["user_clicks_count_1h"]) == (7, 8)
    assert (row["item_sum_1h"], row["item_max_1h"]) == (BIG, BIG + 3)
    assert (row["last_user"], row["item_max"]) == (BIG + 1, float(BIG + 3))
    assert row["item_click_age"] == 8e-6  # asked 4 µs after a row whose event was 4 µs old
    assert row["thing"] == int(requests.hash64(pa.array([BIG]))[0])
    assert row["user_ctr"] == (8 + 1) / (7 + 1 + 9)
    assert row["price_log"] == math.log1p(2.5)


def test_reading_by_column_gives_the_bits_of_feasts_own_read(store, shop, kiosk):
    rng = np.random.default_rng(3)
    for spec in (shop, kiosk):
        for view, features in spec.views.items():
            keys = [
                tuple(f"wide{i}" if column == "user_id" else WIDE + i for column in features[0].key)
                for i in range(40)
            ]
            for at_us, some in ((T0 - 2 * HOUR_US, keys), (T0, keys[::3])):
                store.push(spec, view, rows(spec, view, at_us, some, int(rng.integers(300))))
        for size in (1, 7, 60):
            users = [f"wide{i}" if i % 7 else None for i in rng.integers(0, 60, size)]
            items = [WIDE + int(i) if i % 5 else None for i in rng.integers(0, 60, size)]
            prices = [float(i) if i > 0 else math.nan for i in rng.normal(3, 5, size)]
            at_us = (T0 + rng.integers(0, 2 * HOUR_US, size)).tolist()
            question = asked(spec, at_us, user_id=users, item=items, price=prices)
            found = store.read_online(spec, question)
            assert found.schema.equals(feature_schema(spec))
            assert bits(found) == bits(store.read_by_feast(spec, question))


def test_an_absent_or_missing_key_reads_as_empty_without_a_time(store: Store, shop: LineSpec):
    found = store.read_online(
        shop, asked(shop, [T0, T0], user_id=["nobody", None], item=[1, None], price=[None, None])
    ).to_pylist()
    for row in found:
        assert [row[f"{view}__at"] for view in shop.views] == [None] * 3
        assert [row[feature.name] for feature in shop.windows] == [0] * 4 + [MISSING] * 4
        assert row["last_user"] == -1
        assert all(math.isnan(row[name]) for name in ("item_max", "item_click_age", "item_mean"))
        assert row["user_ctr"] == 0.1
        assert row["price_bucket"] == -1
        assert math.isnan(row["price_log"])
    assert (found[1]["user"], found[1]["thing"]) == (-1, -1)
    assert found[0]["user"] >= 0


def test_a_newer_row_replaces_the_older_one(store: Store, shop: LineSpec):
    for tick in range(3):
        view = "shop_by_user_id"
        store.push(shop, view, rows(shop, view, T0 + tick, [("eve",), ("zed",)], 10 * tick))
    found = store.read_online(shop, asked(shop, [T0 + 9], user_id=["eve"], item=[1]))
    assert found["user_views_count_1h"].to_pylist() == [20]
    assert found["shop_by_user_id__at"].cast(pa.int64()).to_pylist() == [T0 + 2]


def test_no_rows_ask_and_give_nothing(store: Store, shop: LineSpec):
    nothing = asked(shop, [])
    assert store.read_online(shop, nothing).equals(feature_schema(shop).empty_table())
    assert store.read_history(shop, nothing).equals(feature_schema(shop).empty_table())
    store.push(shop, "shop_by_item", rows(shop, "shop_by_item", T0, [], 0))


def test_history_before_the_first_tick_is_all_zeros(store: Store, applied: Settings):
    coupons = find_line(applied, "coupons")
    found = store.read_history(coupons, asked(coupons, [T0], user_id=["u"], item_id=["i"]))
    assert [found[feature.name].to_pylist() for feature in coupons.windows] == [[0]] * 8


def test_history_equals_what_was_online_bit_for_bit(
    store: Store, shop: LineSpec, applied: Settings
):
    keys = {
        "shop_by_user_id": [("h1",), ("h2",)],
        "shop_by_item": [(5,), (BIG,)],
        "shop_by_user_id_item": [("h1", 5), ("h2", BIG)],
    }
    question = asked(
        shop,
        [0] * 5,
        user_id=["h1", "h2", None, "h1", "h1"],
        item=[5, BIG, 5, None, 5],
        price=[0.1, None, float("nan"), 1e300, 0.1],
    )
    online, at = [], question.schema.get_field_index("request_at")
    for tick in range(3):
        at_us = T0 + 1_000_000 * tick
        for view, written in keys.items():
            part = rows(shop, view, at_us, written, BIG + 100 * tick)
            path = applied.line_home("shop") / "features" / view / f"b={tick:08d}.parquet"
            pq.write_table(feature_part(shop, view, part), path)
            store.push(shop, view, part)
        now = question.set_column(at, "request_at", pa.array([at_us + tick] * 5, pa.int64()))
        online.append((now, store.read_online(shop, now)))
    everything = pa.concat_tables([now for now, _ in reversed(online)])
    history = store.read_history(shop, everything)
    expected = pa.concat_tables([found for _, found in reversed(online)]).combine_chunks()
    assert history.num_rows == 15
    assert bits(history) == bits(expected)


def test_a_view_alone_and_the_on_demand_view_alone_give_what_the_service_gives(
    store: Store, shop: LineSpec, applied: Settings
):
    view = "shop_by_item"
    part = rows(shop, view, T0, [(77,), (78,)], BIG)
    path = applied.line_home("shop") / "features" / view / "b=00000099.parquet"
    pq.write_table(feature_part(shop, view, part), path)
    moments = [T0 - 1, T0, T0 + 5, T0 + 5]
    question = asked(shop, moments, item=[77, 77, 78, None], price=[1.5, None, 0.0, 2.0])
    whole = store.read_history(shop, question)
    alone = store.read_view_history(shop, view, question)
    assert alone["at"].to_pylist() == [0, T0, T0, 0]
    for feature in shop.views[view]:
        assert alone[feature.name].to_pylist() == whole[feature.name].to_pylist()
    for feature in shop.windows:
        question = question.append_column(feature.name, whole[feature.name])
    inputs = store.transform(shop, question)
    for name in inputs.column_names:
        assert bits_of(inputs[name]).tolist() == bits_of(whole[name]).tolist(), name


def test_the_plain_feast_sdk_reads_the_feature_service(
    store: Store, shop: LineSpec, plain: FeatureStore
):
    store.push(shop, "shop_by_user_id", rows(shop, "shop_by_user_id", T0, [("sdk",)], 40))
    found = plain.get_online_features(
        features=plain.get_feature_service("shop_v3"),
        entity_rows=[
            {
                "user_id": "sdk",
                "item": 9,
                "user_id__request": "sdk",
                "item__request": 9,
                "price": 3.0,
                "request_at": T0,
            }
        ],
    ).to_dict()
    assert found["user_views_count_1h"] == [40]
    assert found["item_sum_1h"] == [None]
    assert found["user_ctr"] == [42 / 50]
    ours = store.read_online(shop, asked(shop, [T0], user_id=["sdk"], item=[9], price=[3.0]))
    for feature in shop.request_features:
        mine = [None if x != x else x for x in ours[feature.name].to_pylist()]  # Feast's NaN
        assert found[feature.name] == mine


def test_reading_and_writing_at_once_sees_whole_rows(applied: Settings, shop: LineSpec):
    writer, reader, view = Store(applied), Store(applied), "shop_by_user_id"
    stop, problems = threading.Event(), []

    def read() -> None:
        question = asked(shop, [T0], user_id=["both"], item=[1])
        while not stop.is_set():
            row = reader.read_online(shop, question).to_pylist()[0]
            if row[f"{view}__at"] and row["user_clicks_count_1h"] != row["user_views_count_1h"] + 1:
                problems.append(row)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for tick in range(40):
        writer.push(shop, view, rows(shop, view, T0 + tick, [("both",)], tick))
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_push_stores_the_bytes_that_feast_would_store(
    store: Store, shop: LineSpec, applied: Settings, plain: FeatureStore
):
    for view in shop.views:
        store.clear(view)
    before = stored(applied)
    keys = {"user_id": [("ann",), ("zoë",)], "item": [(5,), (-BIG,)]}
    keys["user_id_item"] = [("ann", 5), ("zoë", -BIG)]
    parts = {
        f"shop_by_{name}": rows(shop, f"shop_by_{name}", T0, given, 3)
        for name, given in keys.items()
    }
    for view, part in parts.items():
        plain.push(f"{view}_push", feature_part(shop, view, part).to_pandas())
    feasts = stored(applied)
    assert feasts != before
    for view in shop.views:
        store.clear(view)
    assert stored(applied) == before
    for view, part in parts.items():
        store.push(shop, view, part)
    assert stored(applied) == feasts


def test_the_last_write_wins_even_when_its_time_is_older(
    store: Store, shop: LineSpec, plain: FeatureStore
):
    view, key = "shop_by_user_id", [("old",)]
    question = asked(shop, [T0 + 9], user_id=["old"], item=[1])
    for at_us, value in ((T0 + 2, 3), (T0 + 1, 4), (T0 + 1, 5)):
        store.push(shop, view, rows(shop, view, at_us, key, value))
        assert store.read_online(shop, question)["user_views_count_1h"].to_pylist() == [value]
    part = feature_part(shop, view, rows(shop, view, T0, key, 6))
    plain.push(f"{view}_push", part.to_pandas())
    assert store.read_online(shop, question)["user_views_count_1h"].to_pylist() == [6]


def test_a_store_that_lost_rows_is_found_at_the_next_push(applied: Settings, shop: LineSpec):
    writer, view = Store(applied), "shop_by_item"
    writer.push(shop, view, rows(shop, view, T0 + 7_000_000, [(1,)], 1))
    assert writer.mark_us(view) == Store(applied).mark_us(view) == T0 + 7_000_000
    Store(applied).clear(view)  # as a Redis that restarts without its data
    with pytest.raises(EnvironmentFault, match=r"shop_by_item .* lost rows"):
        writer.push(shop, view, rows(shop, view, T0 + 8_000_000, [(2,)], 2))
    assert writer.mark_us(view) is None  # so the next start pushes all of it
    writer.push(shop, view, rows(shop, view, T0 + 8_000_000, [(2,)], 2))
    assert writer.mark_us(view) == T0 + 8_000_000
    found = writer.read_online(shop, asked(shop, [T0] * 2, user_id=["x"] * 2, item=[1, 2]))
    assert found["item_sum_1h"].to_pylist() == [0, 2]


def test_a_view_that_feast_drops_loses_its_mark_with_its_rows(
    store: Store, shop: LineSpec, plain: FeatureStore
):
    view = "shop_by_user_id_item"
    store.push(shop, view, rows(shop, view, T0, [("ann", 1)], 1))
    assert store.mark_us(view) is not None
    registered, online = plain.get_feature_view(view), plain.provider.online_store
    online.update(plain.config, [registered], [], [], [], partial=False)
    assert store.mark_us(view) is None
    online.update(plain.config, [], [registered], [], [], partial=False)
    question = asked(shop, [T0], user_id=["ann"], item=[1])
    assert store.read_online(shop, question)[f"{view}__at"].to_pylist() == [None]


def test_a_row_counts_to_the_end_of_its_ttl_and_no_longer(
    store: Store, kiosk: LineSpec, applied: Settings, plain: FeatureStore
):
    ttl, end = kiosk.feature_ttl, T0 + kiosk.feature_ttl
    written = {"kiosk_by_user_id": [("ann",)], "kiosk_by_item": [(9,)]}
    for view, keys in written.items():
        part = rows(kiosk, view, T0, keys, 140)
        folder = applied.line_home("kiosk") / "features" / view
        pq.write_table(feature_part(kiosk, view, part), folder / "b=0.parquet")
        store.push(kiosk, view, part)
    later = rows(kiosk, "kiosk_by_item", end, [(9,)], 150)
    question = asked(
        kiosk, [T0, end, end + 1, end + ttl], user_id=["ann"] * 4, item=[9] * 4, price=[1.0] * 4
    )
    found = store.read_online(kiosk, question)
    history = store.read_history(kiosk, question)
    assert bits(found) == bits(history)
    for view in written:
        at = found[f"{view}__at"].cast(pa.int64()).to_pylist()
        assert at == [T0, T0, None, None]
    assert found["user_views_count_1h"].to_pylist() == [140, 140, 0, 0]
    assert found["item_max_1h"].to_pylist() == [143, 143, MISSING, MISSING]
    assert found["user_ctr"].to_pylist() == [142 / 150, 142 / 150, 0.1, 0.1]
    assert [math.isnan(age) for age in found["item_click_age"].to_pylist()] == [False] * 2 + [
        True
    ] * 2
    store.push(kiosk, "kiosk_by_item", later)  # one view alive, one expired
    mixed = store.read_online(kiosk, question.slice(2, 1)).to_pylist()[0]
    assert (mixed["user_views_count_1h"], mixed["item_sum_1h"]) == (0, 150)


def asked_async(plain: FeatureStore, feature: str, rows: list[dict[str, object]]) -> Any:
    """Values by Feast's asynchronous read."""

    async def ask() -> Any:
        try:
            found = await plain.get_online_features_async([feature], rows)
            return found.to_dict()[feature.partition(":")[2]]
        finally:
            await plain.provider.online_store._client_async.aclose()

    return asyncio.run(ask())


def test_plain_feast_honours_the_ttl_as_well(store: Store, kiosk: LineSpec, plain: FeatureStore):
    view, now_us = "kiosk_by_user_id", pd.Timestamp.now("UTC").value // 1000
    store.push(kiosk, view, rows(kiosk, view, now_us - kiosk.feature_ttl - 1, [("past",)], 8))
    store.push(kiosk, view, rows(kiosk, view, now_us - 1_000_000, [("young",)], 9))
    users = [{"user_id": name} for name in ("past", "young", "nobody")]
    names = ["user_views_count_1h", f"{view}__at"]
    for wanted in (names, names[:1]):  # with the row's time, and without
        answer = plain.get_online_features([f"{view}:{name}" for name in wanted], users)
        assert answer.to_dict()["user_views_count_1h"] == [None, 9, None]
        assert answer.to_dict().keys() == {"user_id", *wanted}
        place = list(answer.proto.metadata.feature_names.val).index("user_views_count_1h")
        assert list(answer.proto.results[place].statuses)[:2] == [4, 1]  # OUTSIDE_MAX_AGE, PRESENT
    long = plain.get_online_features([f"{view}:{names[0]}"], users, full_feature_names=True)
    assert long.to_dict()[f"{view}__{names[0]}"] == [None, 9, None]
    if plain.provider.async_supported.online.read:  # Redis
        assert asked_async(plain, f"{view}:{names[0]}", users) == [None, 9, None]
    service = plain.get_feature_service("kiosk_v3")
    row = {"user_id": "past", "item": 1, "user_id__request": "past", "item__request": 1}
    row |= {"price": 1.0, "request_at": now_us - 1}  # within: the request's time counts, not now
    assert plain.get_online_features(service, [row]).to_dict()["user_ctr"] == [10 / 18]
    row["request_at"] = now_us
    assert plain.get_online_features(service, [row]).to_dict()["user_ctr"] == [0.1]
    assert plain.get_feature_view(view).ttl == timedelta(hours=1)
