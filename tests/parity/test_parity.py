"""Parity: nothing to tell about an honest server, and every planted skew is named.

The online store here is a dict that takes what ticks push, so a served row is what a server
would have read and computed at that moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from headrace import parity, requests
from headrace.declaration import LineSpec
from headrace.events import TIME, event_schema, input_fields, served_schema
from headrace.ingest.tick import TickState, run_tick
from headrace.labels.state import LabelState
from headrace.log.files import FileLog
from headrace.settings import PROJECT, Settings, load_settings
from headrace.windows import WindowState

T0, SECOND = 1_750_000_000_000_000, 1_000_000
USERS, ITEMS = ["ann", "bob", None], ["i1", "i2", "i3"]


@dataclass
class Online:
    """What a key-value store would hold: the newest row by view and key."""

    rows: dict[tuple[str, tuple[object, ...]], dict[str, object]] = field(default_factory=dict)

    def push(self, spec: LineSpec, view: str, rows: pa.Table) -> None:
        key = spec.views[view][0].key
        for row in rows.to_pylist():
            self.rows[view, tuple(row[part] for part in key)] = row

    def read(self, spec: LineSpec, asked: dict[str, object]) -> dict[str, object]:
        found: dict[str, object] = {}
        for view, features in spec.views.items():
            row = self.rows.get((view, tuple(asked[part] for part in features[0].key)), {})
            found[f"{view}__at"] = row.get("event_timestamp")
            found |= {feature.name: row.get(feature.name, feature.empty) for feature in features}
        return found


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    """The shipped line, with every other aggregate on top."""
    line = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text(encoding="utf-8"))
    item = {"key": ["item_id"], "window": "2m"}
    line["windows"] += [
        {**item, "name": "item_users", "event": "impression", "aggregate": "distinct"}
        | {"column": "user_id"},
        {**item, "name": "item_user", "event": "click", "aggregate": "last"}
        | {"column": "user_id", "rank": 2},
        {**item, "name": "item_top", "event": "click", "aggregate": "min", "column": "position"},
        {**item, "name": "item_clicked_at", "event": "click", "aggregate": "last_at"},
    ]
    line["request_features"] += [
        {"name": "item_user_id", "kind": "hash", "of": "item_user"},
        {"name": "item_top_number", "kind": "number", "of": "item_top"},
        {"name": "item_click_age", "kind": "since", "of": "item_clicked_at"},
    ]
    return LineSpec.model_validate(line)


@pytest.fixture(scope="module")
def lived(spec: LineSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, pa.Table]:
    """A home with 40 ticks of random traffic, and the rows served between them."""
    settings = load_settings({"HEADRACE_HOME": str(tmp_path_factory.mktemp("parity"))})
    home, random = settings.line_home("coupons"), np.random.default_rng(11)
    events = FileLog(home / "log" / "events", event_schema(spec), writer=True)
    FileLog(home / "log" / "served", served_schema(spec), writer=True).close()
    state, online, served = TickState(spec, home), Online(), []
    for tick in range(40):
        now_us = T0 + tick * 20 * SECOND
        events.append(_traffic(spec, random, tick, now_us))
        plan = state.plan()
        assert plan is not None
        run_tick(state, plan, lambda view, rows: online.push(spec, view, rows))
        served += [_serve(spec, online, random, now_us + 7 * SECOND, tick, i) for i in range(6)]
    return settings, pa.concat_tables(served).combine_chunks()


def _traffic(spec: LineSpec, random: np.random.Generator, tick: int, now_us: int) -> pa.Table:
    rows = []
    for i in range(random.integers(3, 12)):
        click = i > 0 and random.random() < 0.4
        first = f"{max(tick - 1, 0)}:0"  # shown again now and then: a duplicate
        shown = f"{tick}:0" if click else f"{tick}:{i}" if i < 9 else first
        rows.append(
            {
                "event": "click" if click else "impression",
                "impression_id": shown,
                "event_at": now_us + i,
                "arrival_at": now_us + i,
                "value": int(click),
                **_asked(random),
            }
        )
    return pa.Table.from_pylist(rows, schema=_as_int(event_schema(spec))).cast(event_schema(spec))


def _asked(random: np.random.Generator) -> dict[str, object]:
    return {
        "user_id": USERS[random.integers(len(USERS))],
        "item_id": ITEMS[random.integers(len(ITEMS))],
        "category": "food",
        "discount": None if random.random() < 0.3 else float(random.random()),
        "position": 1,
    }


def _serve(
    spec: LineSpec, online: Online, random: np.random.Generator, now_us: int, tick: int, i: int
) -> pa.Table:
    asked = _asked(random)
    windows = online.read(spec, asked)
    names = [*spec.columns, *(feature.name for feature in spec.windows)]
    table = pa.Table.from_pylist(
        [asked | windows], schema=pa.schema([served_schema(spec).field(name) for name in names])
    ).append_column("request_at", pa.array([now_us]))
    inputs = requests.transform(spec, table).to_pylist()[0]
    row = {
        "impression_id": f"s{tick}:{i}",
        "request_id": f"s{tick}",
        "served_at": now_us,
        "version": "v000001",
        "score": 0.5,
    }
    schema = served_schema(spec)
    at = {name: value for name, value in windows.items() if name.endswith("__at")}
    plain = row | asked | {k: v for k, v in windows.items() if k not in at} | inputs
    columns = []
    for one in schema:
        value = at[one.name] if one.name in at else plain[one.name]
        if one.name == "served_at":
            columns.append(pa.array([value], pa.int64()).cast(TIME))
        else:
            columns.append(pa.array([value], one.type))
    return pa.table(columns, schema=schema)


def _as_int(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [pa.field(f.name, pa.int64()) if pa.types.is_timestamp(f.type) else f for f in schema]
    )


def _with(served: pa.Table, row: int, name: str, value: object) -> pa.Table:
    """The table with one value replaced."""
    values = served[name].to_pylist()
    values[row] = value
    place = served.schema.get_field_index(name)
    one = served.schema.field(place)
    return served.set_column(place, one, pa.array(values, one.type))


def test_an_honest_server_has_no_mismatch(lived, spec):
    settings, served = lived
    report = parity.check(settings, spec, served)
    assert (report.rows, report.mismatches, report.first) == (240, 0, [])
    assert served["coupons_by_item_id__at"].null_count < served.num_rows  # something was compared
    assert pc.max(served["item_clicks_count_10m"]).as_py() > 0


@pytest.mark.parametrize("feature", ["item_clicks_count_10m", "user_category_clicks_count_30m"])
def test_a_count_that_is_off_by_one_is_named(lived, spec, feature):
    settings, served = lived
    row = 200
    skewed = _with(served, row, feature, served[feature][row].as_py() + 1)
    report = parity.check(settings, spec, skewed)
    found = [one for one in report.first if one["kind"] == "window"]
    assert [(one["impression_id"], one["feature"]) for one in found] == [
        (served["impression_id"][row].as_py(), feature)
    ]
    assert found[0]["served"] == found[0]["recomputed"] + 1
    assert report.mismatches == sum(report.by_feature.values()) >= 1


def test_the_last_bit_of_a_float_counts(lived, spec):
    settings, served = lived
    value = served["item_ctr_1m"][17].as_py()
    skewed = _with(served, 17, "item_ctr_1m", math.nextafter(value, 1))
    report = parity.check(settings, spec, skewed)
    assert report.by_feature == {"item_ctr_1m": 1}
    assert report.first[0]["impression_id"] == served["impression_id"][17].as_py()
    assert report.first[0]["kind"] == "input"


def test_an_id_that_lost_its_last_bits_is_named(lived, spec):
    settings, served = lived
    row = next(i for i, v in enumerate(served["item"].to_pylist()) if int(float(v)) != v)
    rounded = int(float(served["item"][row].as_py()))
    report = parity.check(settings, spec, _with(served, row, "item", rounded))
    assert report.by_feature == {"item": 1}


def test_a_row_that_was_replaced_long_before_the_request_is_stale(lived, spec):
    settings, served = lived
    early, late = served.slice(60, 6).to_pylist(), served.slice(210, 6).to_pylist()
    old, new = next((a, b) for a in early for b in late if a["item_id"] == b["item_id"])
    row = served["impression_id"].to_pylist().index(new["impression_id"])
    view = "coupons_by_item_id"
    stuck = served
    for name in (f"{view}__at", *(feature.name for feature in spec.views[view])):
        stuck = _with(stuck, row, name, old[name])
    names = [*spec.columns, *(feature.name for feature in spec.windows)]
    asked = stuck.select(names).append_column("request_at", stuck["served_at"].cast(pa.int64()))
    inputs = requests.transform(spec, asked)
    for one in input_fields(spec):  # consistent in itself, only old
        stuck = _with(stuck, row, one.name, inputs[one.name][row].as_py())
    report = parity.check(settings, spec, stuck)
    assert report.by_feature == {f"{view}__at": 1}
    assert (report.first[0]["kind"], report.first[0]["impression_id"]) == (
        "stale",
        new["impression_id"],
    )


def test_a_key_that_was_written_but_not_found_is_stale(lived, spec):
    settings, served = lived
    row, view = 215, "coupons_by_item_id"
    lost = _with(served, row, f"{view}__at", None)
    report = parity.check(settings, spec, lost)
    assert report.by_feature[f"{view}__at"] == 1
    windows = {one["feature"] for one in report.first if one["kind"] == "window"}
    told = {f.name for f in spec.views[view] if served[f.name][row].as_py() != f.empty}
    assert windows == told


def test_a_row_that_expired_is_not_missed(lived, spec):
    settings, served = lived
    row, view = 215, "coupons_by_item_id"
    empty = {feature.name: feature.empty for feature in spec.views[view]}
    expired = served
    for name, value in ({f"{view}__at": None} | empty).items():
        expired = _with(expired, row, name, value)
    names = [*spec.columns, *(feature.name for feature in spec.windows)]
    asked = expired.select(names).append_column("request_at", expired["served_at"].cast("int64"))
    inputs = requests.transform(spec, asked)
    for one in input_fields(spec):
        expired = _with(expired, row, one.name, inputs[one.name][row].as_py())
    written_us = served[f"{view}__at"][row].as_py()
    age = served["served_at"][row].as_py() - written_us
    for ttl_us, stale in ((age.seconds * SECOND + age.microseconds, 1), (6 * SECOND, 0)):
        with_ttl = spec.model_copy(update={"feature_ttl": ttl_us})
        report = parity.check(settings, with_ttl, expired)
        assert report.by_feature == ({f"{view}__at": 1} if stale else {})


def test_bootstrap_rows_are_left_out(lived, spec):
    settings, served = lived
    wrong = _with(served, 3, "item_clicks_count_10m", 10**6)
    assert parity.check(settings, spec, wrong).mismatches > 0
    wrong = _with(wrong, 3, "version", "bootstrap")
    report = parity.check(settings, spec, wrong)
    assert (report.rows, report.mismatches) == (239, 0)


def test_without_served_rows_there_is_nothing_to_compare(spec, tmp_path: Path):
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    assert parity.check(settings, spec).to_dict() == {
        "rows": 0,
        "mismatches": 0,
        "first": [],
        "by_feature": {},
    }


def test_a_restored_state_holds_what_the_whole_log_gives(lived, spec):
    settings, served = lived
    home = settings.line_home("coupons")
    log = FileLog(home / "log" / "events", event_schema(spec))
    events = log.read(0, log.head).append_column("offset", pa.array(range(log.head), pa.int64()))
    whole = WindowState(spec)
    whole.append(LabelState(spec).resolve(events))
    (home / "ticks" / "00000039.json").rename(home / "last.json")  # so that a tick is replayed
    try:
        restored = TickState.restore(spec, home)
    finally:
        (home / "last.json").rename(home / "ticks" / "00000039.json")
    assert restored.next_tick == 39
    at = np.full(served.num_rows, restored.at_us)
    values = restored.windows.values(served, at)
    assert values.equals(whole.values(served, at))
    assert values["item_users"].to_numpy().max() > 1
