"""Feast as Headrace uses it: what is pushed is read, online and in history, bit for bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import requests
from headrace.bits import bits
from headrace.declaration import MISSING, LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import ARROW_TYPES, TIME
from headrace.feature_rows import feature_part, feature_schema
from headrace.settings import Settings
from headrace.store import Store

T0 = 1_750_000_000_123_457  # not a whole second: Feast's SQLite store would cut it
BIG = 2**62 + 1  # a float64 would round it


def rows(spec: LineSpec, view: str, at_us: int, keys: list[tuple[object, ...]], value: int):
    names = spec.views[view][0].key
    columns = {
        name: pa.array([key[i] for key in keys], ARROW_TYPES[spec.columns[name]])
        for i, name in enumerate(names)
    }
    columns["event_timestamp"] = pa.array([at_us] * len(keys), pa.int64()).cast(TIME)
    for i, feature in enumerate(spec.views[view]):
        # by turns nothing and a moment close before the request, where a feature may have none
        stored = MISSING if feature.empty and value % 200 < 100 else value + i
        if feature.aggregate == "last_at" and stored != MISSING:
            stored = at_us - i
        columns[feature.name] = pa.array([stored] * len(keys), pa.int64())
    return pa.table(columns)


def asked(spec: LineSpec, at_us: list[int], **columns: list[object]) -> pa.Table:
    size = len(at_us)
    given = {
        name: pa.array(columns.get(name, [None] * size), ARROW_TYPES[kind])
        for name, kind in spec.columns.items()
    }
    return pa.table(given | {"request_at": pa.array(at_us, pa.int64())})


@pytest.fixture(scope="module")
def store(applied: Settings) -> Store:
    return Store(applied)


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
    from headrace.settings import find_line

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
    for name in expected.column_names:
        left, right = history[name], expected[name]
        if pa.types.is_floating(left.type):
            left, right = (pa.array(c.to_numpy().view("int64")) for c in (left, right))
        assert left.to_pylist() == right.to_pylist(), name


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
        assert bits(inputs[name]).tolist() == bits(whole[name]).tolist(), name


def test_the_plain_feast_sdk_reads_the_feature_service(
    store: Store, shop: LineSpec, applied: Settings
):
    from feast import FeatureStore

    store.push(shop, "shop_by_user_id", rows(shop, "shop_by_user_id", T0, [("sdk",)], 40))
    plain = FeatureStore(repo_path=str(applied.home / "feast"))
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


def test_the_feast_command_line_applies_the_repository(applied: Settings, tmp_path: Path):
    environ = os.environ | {
        "HEADRACE_HOME": str(tmp_path),
        "HEADRACE_LINES_DIR": str(applied.lines_dir),
    }
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run(
        [feast, "-c", str(applied.feature_repo), "apply"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Created feature service shop_v3" in done.stdout
    assert {path.name for path in (tmp_path / "feast").iterdir()} == {"online.db", "registry.db"}


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


def test_a_store_that_was_not_applied_says_so(applied: Settings, shop: LineSpec, tmp_path: Path):
    with pytest.raises(EnvironmentFault, match="headrace up"):
        Store(replace(applied, home=tmp_path)).read_online(shop, asked(shop, [T0]))


def test_a_line_changed_since_it_was_applied_is_refused(applied: Settings, shop: LineSpec):
    changed = shop.model_copy(update={"timezone": "Asia/Tokyo"})
    with pytest.raises(EnvironmentFault, match="another declaration"):
        Store(applied).read_online(changed, asked(shop, [T0], user_id=["a"], item=[1]))
