"""`headrace features`: the catalogue tells what is declared and what Feast holds."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import cli
from headrace.cli import options
from headrace.events import event_schema
from headrace.hashes import hash64
from headrace.ingest.service import import_history
from headrace.sample import read_samples, ticks
from headrace.settings import Settings, find_line

SECOND = 1_000_000
START = 1_700_000_000 * SECOND


@pytest.fixture(scope="module")
def lived(applied: Settings) -> Settings:
    """The line `shop` after a minute of impressions and clicks, in parts, samples and Feast."""
    spec, rng = find_line(applied, "shop"), np.random.default_rng(8)
    events: list[dict[str, Any]] = []
    for number in range(60):
        at_us = START + number * SECOND
        shown = {"impression_id": f"i{number}", "user_id": f"u{number % 3}", "price": 2.0}
        shown |= {"item": None if number == 7 else int(rng.integers(4)), "note": "x"}
        events.append(shown | {"event": "impression", "value": 0, "arrival_at": at_us})
        if number % 5 == 0:
            click = {"event": "click", "impression_id": f"i{number}", "value": 1}
            events.append(click | {"arrival_at": at_us + SECOND // 2})
    rows = [event | {"event_at": event["arrival_at"]} for event in events]
    import_history(applied, spec, pa.Table.from_pylist(rows, event_schema(spec)), 10 * SECOND)
    return applied


@pytest.fixture
def run(
    lived: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    monkeypatch.setenv("HEADRACE_HOME", str(lived.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(lived.lines_dir))
    monkeypatch.setattr(options.out, "width", 200)

    def call(*words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["headrace", "features", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed.err
        return printed.err if code else printed.out

    return call


def newest_parts(settings: Settings, view: str) -> pa.Table:
    home = settings.line_home("shop")
    paths = [home / tick.features[view] for tick in ticks(home) if view in tick.features]
    return pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])


def test_list_has_every_feature_of_every_line(run: Any, lived: Settings):
    listed = json.loads(run("list", "--json"))
    for line in ("coupons", "kiosk", "shop"):
        spec = find_line(lived, line)
        declared = [f.name for f in (*spec.windows, *spec.request_features)]
        assert sorted(f["name"] for f in listed if f["line"] == line) == sorted(declared)
    kiosk, shop = (
        next(f for f in listed if (f["line"], f["name"]) == (line, "item_user_1h"))
        for line in ("kiosk", "shop")
    )
    assert kiosk == {
        "name": "item_user_1h", "kind": "window", "line": "kiosk", "view": "kiosk_by_item",
        "entity": ["item"], "aggregate": "last click", "window": "1h", "ttl": "1h",
        "service": "kiosk_v3",
    }  # fmt: skip
    assert (shop["ttl"], shop["service"]) == (None, "shop_v3")
    ratio = next(f for f in listed if f["name"] == "user_ctr")
    assert (ratio["kind"], ratio["aggregate"], ratio["window"]) == ("request", "ratio", None)
    table = run("list")
    assert all(
        name in table for name in ("item_user_1h", "user_ctr", "user_id, item", "coupons_v1")
    )


def test_describe_tells_meaning_readers_and_the_statistics_of_the_parts(run: Any, lived: Settings):
    found = json.loads(run("describe", "user_views_count_1h", "--json"))
    assert [one["line"] for one in found] == ["kiosk", "shop"]
    kiosk, shop = found
    assert kiosk["statistics"] is None
    assert shop["meaning"] == (
        "number of impressions with the same user_id that became known in the 1h before"
    )
    assert (shop["read_by"], shop["service"]) == (["user_ctr"], "shop_v3")
    values = newest_parts(lived, "shop_by_user_id")["user_views_count_1h"].to_numpy()
    told = shop["statistics"]
    expected = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    assert [told[name] for name in ("min", "p50", "p95", "max")] == expected
    assert (told["rows"], told["empty_share"]) == (len(values), 0)
    newest = datetime.fromisoformat(told["newest_at"])
    assert round(newest.timestamp() * 1e6) == ticks(lived.line_home("shop"))[-1].at_us
    assert told["age_s"] > 0
    (text,) = json.loads(run("describe", "item_note", "--json"))[1:]
    assert text["meaning"].startswith("2. newest note over clicks")
    assert set(text["statistics"]) >= {"distinct", "empty_share"}
    assert 0 < text["statistics"]["empty_share"] < 1
    table = run("describe", "user_views_count_1h")
    assert "kiosk: user_views_count_1h" in table
    assert "none yet" in table
    assert len(json.loads(run("describe", "shop_by_item", "--json"))) == 5  # a whole view


def test_describe_measures_request_features_where_they_were_served(run: Any, lived: Settings):
    spec = find_line(lived, "shop")
    samples = read_samples(spec, lived.line_home("shop"), 0, len(ticks(lived.line_home("shop"))))
    thing = json.loads(run("describe", "thing", "--json"))[1]
    assert thing["meaning"] == "63-bit id of item"
    assert thing["read_by"] == ["the model"]
    assert thing["statistics"]["rows"] == samples.num_rows
    assert thing["statistics"]["empty_share"] == 1 / samples.num_rows
    assert thing["statistics"]["distinct"] == 4
    ctr = json.loads(run("describe", "user_ctr", "--json"))[1]
    assert ctr["meaning"] == "(user_clicks_count_1h + 1) / (user_views_count_1h + 10)"
    assert ctr["statistics"]["max"] == max(samples["user_ctr"].to_pylist())


def test_sample_reads_a_key_online_through_feast(run: Any, lived: Settings):
    newest = newest_parts(lived, "shop_by_user_id").to_pylist()
    row = [row for row in newest if row["user_id"] == "u1"][-1]
    found = json.loads(run("sample", "--line", "shop", "--key", "user_id=u1", "--json"))
    assert found["user_views_count_1h"] == row["user_views_count_1h"] == 20
    assert found["user_ctr"] == (row["user_clicks_count_1h"] + 1) / 30
    assert found["user"] == int(hash64(pa.array(["u1"]))[0])
    assert "item_sum_1h" not in found
    assert "pair" not in found
    both = ["--line", "shop", "--key", "user_id=u1", "--key", "item=99", "--json"]
    empty = json.loads(run("sample", "shop_by_item", *both))
    assert (empty["shop_by_item__at"], empty["item_sum_1h"], empty["item_max_1h"]) == (
        None,
        0,
        None,
    )
    assert empty.keys().isdisjoint(found)
    assert "u1" not in run("sample", "user_ctr", "--line", "shop", "--key", "user_id=u1")


def test_sample_shows_the_newest_offline_rows(run: Any, lived: Settings):
    rows = json.loads(run("sample", "shop_by_item", "--line", "shop", "--rows", "3", "--json"))
    parts = newest_parts(lived, "shop_by_item")
    newest = max(parts["shop_by_item__at"].to_pylist())
    assert [row["shop_by_item__at"] for row in rows["shop_by_item"]] == [newest] * 3
    every = json.loads(run("sample", "--line", "shop", "--rows", "1000", "--json"))
    assert {view: len(some) for view, some in every.items()} == {
        view: newest_parts(lived, view).num_rows for view in find_line(lived, "shop").views
    }
    assert "newest first" in run("sample", "--line", "shop", "--rows", "2")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["describe", "user_view_count"], 2, "did you mean user_views_count_1h"),
        (
            ["sample", "shop_by_itme", "--line", "shop", "--rows", "1"],
            2,
            "did you mean shop_by_item",
        ),
        (["sample", "--line", "shop"], 2, "--key COLUMN=VALUE"),
        (["sample", "--line", "shop", "--key", "user_id"], 2, "write --key user_id=u12"),
        (["sample", "--line", "shop", "--key", "user=u1"], 2, "did you mean user_id"),
        (["sample", "--line", "shop", "--key", "item=one"], 3, "item='one' is not int"),
        (
            ["sample", "shop_by_item", "--line", "shop", "--key", "user_id=u1"],
            2,
            "does not suffice",
        ),
        (["sample", "user_ctr", "--line", "shop", "--rows", "1"], 3, "read it with --key"),
        (["sample", "--line", "kiosk", "--rows", "1"], 3, "has no rows yet"),
    ],
)
def test_what_cannot_be_shown_is_named_with_its_remedy(
    run: Any, words: list[str], code: int, told: str
):
    assert told in run(*words, code=code)
