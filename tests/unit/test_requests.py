"""Request-time features: written-down values, one row against many, and odd inputs."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import hashes
from headrace.declaration import MISSING, LineSpec
from headrace.errors import InputError
from headrace.events import input_fields
from headrace.hashes import cross64, hash64
from headrace.raw import Candidates
from headrace.requests import Computation, compute, transform

FEATURES: list[dict[str, Any]] = [
    {"name": "hour", "kind": "hour_of_day"},
    {"name": "weekday", "kind": "day_of_week"},
    {"name": "user_id", "kind": "hash", "of": "user"},
    {"name": "item_id", "kind": "hash", "of": "item"},
    {"name": "user_item", "kind": "cross", "of": ["user", "item"]},
    {"name": "user_hour", "kind": "cross", "of": ["user", "hour"]},
    {"name": "price_log", "kind": "log1p", "of": "price"},
    {"name": "item_number", "kind": "number", "of": "item"},
    {"name": "ctr", "kind": "ratio", "of": ["clicks", "views"], "prior": [0.1, 0.2]},
    {"name": "clicks_log", "kind": "log1p", "of": "clicks"},
    {"name": "views_log", "kind": "log1p", "of": "views"},
    {"name": "ctr_bucket", "kind": "bucketize", "of": "ctr", "boundaries": [0.25, 0.5]},
    {"name": "price_bucket", "kind": "bucketize", "of": "price", "boundaries": [0, 1.5, 10]},
    {"name": "bucket_number", "kind": "number", "of": "price_bucket"},
    {"name": "bucket_hash", "kind": "hash", "of": "price_bucket"},
]
ZONE = "America/New_York"
HASHES_OF_TEXT = [
    880122920902532387,
    6975175471489867752,
    8906712734784465587,
    8520106205441991264,
    -1,
]
HASHES_OF_INT = [0, 3119036373970289394, 6514504133438201533, 680214695469361762, -1]
CROSSES = [2817552819953663885, 3140053261077420699, 4328440807228758214]


def spec_with(features: list[dict[str, Any]], categorical: str = "user_id") -> LineSpec:
    window = {"key": ["user"], "aggregate": "count", "window": "1m"}
    return LineSpec.model_validate(
        {
            "line": "toy",
            "timezone": ZONE,
            "columns": {"user": "string", "item": "int", "price": "float"},
            "source": {"kind": "live"},
            "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
            "windows": [
                {**window, "name": "clicks", "event": "click"},
                {**window, "name": "views", "event": "impression"},
            ],
            "request_features": features,
            "model": {"categorical": [categorical]},
        }
    )


SPEC = spec_with(FEATURES)
WINDOWS = ("clicks", "views")
SCHEMA = pa.schema(
    {
        "user": pa.string(),
        "item": pa.int64(),
        "price": pa.float64(),
        "clicks": pa.int64(),
        "views": pa.int64(),
        "request_at": pa.int64(),
    }
)
ROW = st.fixed_dictionaries(
    {
        "user": st.one_of(st.none(), st.text(max_size=5)),
        "item": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "price": st.one_of(st.none(), st.sampled_from([-0.0, 0.0, 1.5, 10.0]), st.floats()),
        "clicks": st.integers(0, 2**40),
        "views": st.integers(0, 2**40),
        "request_at": st.integers(0, 2_000_000_000_000_000),
    }
)


def one(**values: Any) -> dict[str, Any]:
    row = {"user": "u", "item": 1, "price": 1.0, "clicks": 0, "views": 0, "request_at": 0}
    return transform(SPEC, pa.Table.from_pylist([{**row, **values}], SCHEMA)).to_pylist()[0]


def bits(table: pa.Table) -> list[tuple[int, ...]]:
    columns = [column.to_numpy().view(np.int64).tolist() for column in table.columns]
    return list(zip(*columns, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_one_row_and_many_give_the_same_bits(rows: Any) -> None:
    tables = [pa.Table.from_pylist([row], SCHEMA) for row in rows]
    many = transform(SPEC, pa.concat_tables(tables * 30))
    assert many.schema.equals(pa.schema(input_fields(SPEC)))
    alone = [bits(transform(SPEC, table))[0] for table in tables]
    assert bits(many) == alone * 30


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4), st.booleans())
def test_going_ahead_of_the_windows_changes_no_bit(rows: Any, small: bool) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    windows = {name: table[name].to_numpy() % (100 if small else 2**40) for name in WINDOWS}
    request = table.drop_columns(list(WINDOWS))
    ahead = Computation(SPEC, request)
    ahead.go_ahead()
    assert {"hour", "user_item", "price_log"} <= set(ahead.computed)
    assert ahead.computed.keys().isdisjoint(("ctr", "ctr_bucket", "clicks_log", "views_log"))
    found = compute(SPEC, request, windows, ahead)
    for name, values in compute(SPEC, request, windows).items():
        assert np.array_equal(found[name].view(np.int64), values.view(np.int64)), name
    for name in WINDOWS:
        wanted = [math.log1p(value) for value in windows[name].tolist()]
        assert found[f"{name}_log"].tolist() == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6), st.integers(0, 2_000_000_000_000_000))
def test_candidates_and_a_table_of_them_give_the_same_bits(rows: Any, at_us: int) -> None:
    rows = [{**row, "request_at": at_us} for row in rows]
    table = pa.Table.from_pylist(rows, SCHEMA)
    windows = {name: table[name].to_numpy() for name in WINDOWS}
    columns = {name: [row[name] for row in rows] for name in SPEC.columns}
    found = compute(SPEC, Candidates(columns, len(rows)).at(at_us), windows)
    for name, values in compute(SPEC, table, {}).items():
        assert np.array_equal(found[name].view(np.int64), values.view(np.int64)), name


@pytest.mark.parametrize("kept", [0, 2, 1 << 16])
def test_hashes_of_texts_are_those_of_their_column(kept: int, monkeypatch) -> None:
    monkeypatch.setattr(hashes, "_KEPT", kept)
    chance = random.Random(7)
    for _ in range(200):
        texts = [chance.choice([None, "", "é", "x" * 100, f"u{chance.randrange(9)}"]) for _ in "12"]
        assert hashes.hash_texts(texts).tolist() == hash64(pa.array(texts, pa.string())).tolist()


@pytest.mark.parametrize("rows", [pa.table({"request_at": pa.array([0])}), Candidates({}, 1)])
def test_what_fails_ahead_is_told_by_compute(rows: pa.Table | Candidates) -> None:
    ahead = Computation(SPEC, rows)
    ahead.go_ahead()
    assert not ahead.computed
    windows = dict.fromkeys(WINDOWS, np.zeros(1, np.int64))
    with pytest.raises(InputError, match=r"user_id: there is no column 'user'"):
        compute(SPEC, rows, windows, ahead)


@pytest.mark.parametrize("zone", [ZONE, "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"])
def test_rows_of_one_moment_have_the_parts_that_they_have_among_others(zone: str) -> None:
    spec = SPEC.model_copy(update={"timezone": zone})
    turns = [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)]
    around = [int(turn.timestamp() * 1e6) + step for turn in turns for step in (-1, 0, 999_999)]
    table = pa.Table.from_pylist([{"user": "u", "request_at": at} for at in around], SCHEMA)
    mixed = transform(spec, table)
    for row in range(len(around)):
        alone = transform(spec, table.slice(row, 1))
        assert (alone["hour"][0], alone["weekday"][0]) == (
            mixed["hour"][row],
            mixed["weekday"][row],
        )


@settings(max_examples=100, deadline=None)
@given(ROW)
def test_transform_equals_plain_python(row: Any) -> None:
    got = transform(SPEC, pa.Table.from_pylist([row], SCHEMA)).to_pylist()[0]
    local = datetime.fromtimestamp(row["request_at"] // 1_000_000, UTC).astimezone(ZoneInfo(ZONE))
    assert (got["hour"], got["weekday"]) == (local.hour, local.weekday())
    ctr = (row["clicks"] + 0.1) / (row["views"] + 0.1 + 0.2)
    assert got["ctr"] == ctr
    assert got["ctr_bucket"] == sum(ctr >= edge for edge in (0.25, 0.5))
    price = math.nan if row["price"] is None else row["price"]
    if math.isnan(price):
        assert got["price_bucket"] == -1 and math.isnan(got["price_log"])
        assert math.isnan(got["bucket_number"]) and got["bucket_hash"] == -1
    else:
        assert got["price_bucket"] == sum(price >= edge for edge in (0, 1.5, 10))
        assert got["price_log"] == math.log1p(max(price, 0.0))
    assert (got["user_id"] == -1) == (row["user"] is None)
    assert (got["item_id"] == -1) == (row["item"] is None)
    assert got["user_item"] >= 0


def test_ids_are_written_down_for_good() -> None:
    # a stored model's tables are addressed by these: a change makes every version unreadable
    texts = pa.array(["", "a", "N14228", "日本", None])
    assert hash64(texts).tolist() == HASHES_OF_TEXT
    assert hash64(pa.array([0, 1, -1, 2**62, None])).tolist() == HASHES_OF_INT
    parts = [np.array([0, -1, 5]), np.array([7, 7, -1])]
    assert cross64(parts).tolist() == CROSSES
    assert cross64(parts[::-1]).tolist() != CROSSES


def test_hash_does_not_depend_on_the_encoding_or_the_number_of_rows() -> None:
    few = pa.array(["a", None, "b", ""])
    many = pa.concat_arrays([few] * 200)
    expected = hash64(few).tolist()
    assert hash64(many).tolist() == expected * 200
    assert hash64(pa.chunked_array([few, few])).tolist() == expected * 2
    assert hash64(many.slice(1, 700)).tolist() == (expected * 200)[1:701]
    assert hash64(few.cast(pa.large_string())).tolist() == expected
    assert hash64(few.dictionary_encode()).tolist() == expected
    assert hash64(pa.nulls(3)).tolist() == [-1, -1, -1]
    assert hash64(pa.array([], pa.string())).tolist() == []
    with pytest.raises(InputError, match="bucketize"):
        hash64(pa.array([0.5]))


def test_hours_follow_the_zone_through_daylight_saving() -> None:
    summer = int(datetime(2013, 7, 1, 3, 59, tzinfo=UTC).timestamp()) * 1_000_000
    winter = int(datetime(2013, 1, 1, 4, 59, 59, tzinfo=UTC).timestamp()) * 1_000_000
    assert [one(request_at=at)["hour"] for at in (summer, summer + 60_000_000)] == [23, 0]
    assert [one(request_at=at)["hour"] for at in (winter, winter + 1_000_000)] == [23, 0]
    assert one(request_at=winter)["weekday"] == 0  # Monday, New Year's Eve in New York


def test_what_pandas_does_to_missing_values_changes_nothing() -> None:
    rows = [
        {"user": "u", "item": 3, "price": 2.0, "clicks": 1, "views": 2, "request_at": 5},
        {"user": None, "item": None, "price": None, "clicks": None, "views": None, "request_at": 6},
    ]
    table = pa.Table.from_pylist(rows, SCHEMA)
    through_pandas = pa.Table.from_pandas(table.to_pandas(), preserve_index=False)
    assert bits(transform(SPEC, through_pandas)) == bits(transform(SPEC, table))
    naked = pa.table(
        [*table.columns[:5], table.column("request_at").cast(pa.timestamp("us", "UTC"))],
        names=SCHEMA.names,
    )
    assert bits(transform(SPEC, naked)) == bits(transform(SPEC, table))
    unseen = {"user": "u", "item": 3, "price": 2.0, "clicks": None, "views": None, "request_at": 5}
    assert one(**unseen)["ctr"] == 0.1 / (0.1 + 0.2)


def test_faults_name_the_feature_the_column_and_the_remedy() -> None:
    table = pa.Table.from_pylist([], SCHEMA)
    assert transform(SPEC, table).num_rows == 0
    with pytest.raises(InputError, match=r"ctr: there is no column 'views'"):
        transform(SPEC, table.drop_columns(["views"]))
    wrong = pa.Table.from_pylist([{"item": "many"}])
    with pytest.raises(InputError, match="'item' is declared int but holds string"):
        transform(spec_with([FEATURES[3]], "item_id"), wrong)


WINDOWED = LineSpec.model_validate(
    {
        "line": "toy",
        "columns": {"user": "string", "item": "int", "note": "string"},
        "source": {"kind": "live"},
        "label": {"engagement": "click", "attribution_window": "1h"},
        "windows": [
            {"key": ["user"], "event": "impression", "window": "1h", "name": name, **declared}
            for name, declared in {
                "views": {"aggregate": "count"},
                "item_sum": {"aggregate": "sum", "column": "item"},
                "item_min": {"aggregate": "min", "column": "item"},
                "item_last": {"aggregate": "last", "column": "item"},
                "note_last": {"aggregate": "last", "column": "note"},
                "notes": {"aggregate": "distinct", "column": "note"},
                "seen_at": {"aggregate": "last_at"},
            }.items()
        ],
        "request_features": [
            {"name": "since_seen", "kind": "since", "of": "seen_at"},
            {"name": "since_log", "kind": "log1p", "of": "since_seen"},
            {"name": "lowest", "kind": "number", "of": "item_min"},
            {"name": "lowest_bucket", "kind": "bucketize", "of": "item_min", "boundaries": [0, 5]},
            {"name": "item_id", "kind": "hash", "of": "item"},
            {"name": "item_last_id", "kind": "hash", "of": "item_last"},
            {"name": "note_id", "kind": "hash", "of": "note"},
            {"name": "note_last_id", "kind": "hash", "of": "note_last"},
            {"name": "from_to", "kind": "cross", "of": ["note_last", "note"]},
            {"name": "notes_number", "kind": "number", "of": "notes"},
            {"name": "mean", "kind": "mean", "of": ["item_sum", "views"], "prior": [50, 2]},
            {"name": "plain_mean", "kind": "mean", "of": ["item_sum", "views"], "prior": [0, 0]},
        ],
        "model": {"categorical": ["item_id"]},
    }
)


def windowed(values: dict[str, Any], **request: Any) -> dict[str, Any]:
    row = {"user": "u", "item": 4, "note": "hello", "request_at": 90_500_000, **request}
    types = {"user": pa.string(), "note": pa.string()}
    row |= {feature.name: values.get(feature.name) for feature in WINDOWED.windows}
    schema = pa.schema({name: types.get(name, pa.int64()) for name in row})
    return transform(WINDOWED, pa.Table.from_pylist([row], schema)).to_pylist()[0]


def test_what_windows_hold_becomes_seconds_ids_and_means() -> None:
    note_hash = int(hash64(pa.array(["hello"]))[0])
    got = windowed(
        {"views": 3, "item_sum": 12, "item_min": -2, "item_last": 4, "notes": 2}
        | {"note_last": note_hash, "seen_at": 30_000_001}
    )
    assert got["since_seen"] == 60.499999
    assert got["since_log"] == math.log1p(60.499999)
    assert (got["lowest"], got["lowest_bucket"]) == (-2.0, 0)
    assert got["item_last_id"] == got["item_id"]
    assert got["note_last_id"] == got["note_id"] == note_hash
    ids = np.array([note_hash])
    assert got["from_to"] == int(cross64([ids, ids])[0])
    assert got["notes_number"] == 2.0
    assert got["mean"] == (12 + 50 * 2) / (3 + 2)
    assert got["plain_mean"] == 4.0


@pytest.mark.parametrize("never", [None, MISSING])
def test_a_window_without_a_value_is_missing(never: int | None) -> None:
    nothing = ("item_min", "item_last", "note_last", "seen_at")
    got = windowed({"views": 0, "item_sum": 0, "notes": 0} | dict.fromkeys(nothing, never))
    assert all(math.isnan(got[name]) for name in ("since_seen", "since_log", "lowest"))
    assert (got["lowest_bucket"], got["item_last_id"], got["note_last_id"]) == (-1, -1, -1)
    assert (got["mean"], got["notes_number"]) == (50.0, 0.0)
    assert math.isnan(got["plain_mean"])


def test_a_request_stamped_before_the_event_it_has_seen_waited_no_time() -> None:
    assert windowed({"seen_at": 90_500_007})["since_seen"] == 0.0
