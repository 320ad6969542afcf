"""Parity: nothing to tell about an honest server, and every planted skew is named.

The online store here is a dict that takes what ticks push, so a served row is what a server
would have read and computed at that moment.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from headrace import parity, requests
from headrace.bits import bits
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import TIME, event_schema, input_fields, served_schema
from headrace.ingest.tick import TickState, run_tick
from headrace.labels.state import LabelState
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.parity import ParityReport, job
from headrace.parity.causes import Rows, of_rows, of_windows
from headrace.parity.recompute import LogWindows, offsets_between
from headrace.sample import TickManifest, read_tick, ticks
from headrace.settings import PROJECT, Settings, load_settings
from headrace.train import code_of
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
        "arm": "champion",
        "propensity": 1.0,
        "fallback": None,
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


def _again(spec: LineSpec, served: pa.Table) -> pa.Table:
    """The table with model inputs made of the windows that it holds."""
    names = [*spec.columns, *(feature.name for feature in spec.windows)]
    asked = served.select(names).append_column("request_at", served["served_at"].cast(pa.int64()))
    inputs = requests.transform(spec, asked)
    for one in input_fields(spec):
        served = served.set_column(served.schema.get_field_index(one.name), one, inputs[one.name])
    return served


def check(settings: Settings, spec: LineSpec, served: pa.Table) -> ParityReport:
    """Against the log and the ticks' parts; Feast's join over the same parts is in `test_skew`."""
    return parity.check(settings, spec, served, history="parts", shown=None)


def _with(served: pa.Table, row: int, name: str, value: object) -> pa.Table:
    """The table with one value replaced."""
    values = served[name].to_pylist()
    values[row] = value
    place = served.schema.get_field_index(name)
    one = served.schema.field(place)
    return served.set_column(place, one, pa.array(values, one.type))


def test_an_honest_server_has_no_mismatch(lived, spec):
    settings, served = lived
    report = check(settings, spec, served)
    assert (report.rows, report.mismatches, report.first) == (240, 0, [])
    assert served["coupons_by_item_id__at"].null_count < served.num_rows  # something was compared
    assert pc.max(served["item_clicks_count_10m"]).as_py() > 0


def test_rows_of_defaults_are_counted_and_not_compared(lived, spec):
    settings, served = lived
    words = ["defaults", "defaults,previous", "previous", None] * (len(served) // 4)
    for name, values in (
        ("fallback", words),
        ("item_clicks_count_10m", [99] * len(served)),
    ):
        place = served.schema.get_field_index(name)
        one = served.schema.field(place)
        served = served.set_column(place, one, pa.array(values, one.type))
    report = check(settings, spec, served)
    assert (report.rows, report.defaults) == (120, 120)
    told = check(settings, spec, served.filter(pc.is_null(served["fallback"])))
    assert (told.rows, told.defaults) == (60, 0)
    assert 0 < told.mismatches < report.mismatches <= 120 * len(spec.windows)


@pytest.mark.parametrize("feature", ["item_clicks_count_10m", "user_category_clicks_count_30m"])
def test_a_count_that_the_store_changed_is_named_with_all_three_values(lived, spec, feature):
    settings, served = lived
    row = 200
    right = served[feature][row].as_py()
    report = check(settings, spec, _with(served, row, feature, right + 1))
    assert (report.by_feature, report.by_cause) == ({feature: 1}, {"store": 1})
    one = report.first[0]
    assert one.impression_id == served["impression_id"][row].as_py()
    assert one.request_id == served["request_id"][row].as_py()
    assert (one.served, one.log, one.history) == (right + 1, right, right)


def test_an_input_made_of_a_wrong_window_has_that_window_s_cause(lived, spec):
    settings, served = lived
    row, name = 200, "item_clicks_count_10m"
    skewed = _again(spec, _with(served, row, name, served[name][row].as_py() + 5))
    report = check(settings, spec, skewed)
    assert report.by_cause == {"store": report.mismatches}
    assert set(report.by_feature) == {name, "item_ctr_10m", "item_ctr_10m_bucket"}


def test_the_last_bit_of_a_float_counts(lived, spec):
    settings, served = lived
    value = served["item_ctr_1m"][17].as_py()
    skewed = _with(served, 17, "item_ctr_1m", math.nextafter(value, 1))
    report = check(settings, spec, skewed)
    assert (report.by_feature, report.by_cause) == ({"item_ctr_1m": 1}, {"formula": 1})
    assert report.first[0].impression_id == served["impression_id"][17].as_py()


def test_an_id_that_lost_its_last_bits_is_named(lived, spec):
    settings, served = lived
    row = next(i for i, v in enumerate(served["item"].to_pylist()) if int(float(v)) != v)
    rounded = int(float(served["item"][row].as_py()))
    report = check(settings, spec, _with(served, row, "item", rounded))
    assert (report.by_feature, report.by_cause) == ({"item": 1}, {"formula": 1})


def test_missing_is_one_value_and_zero_another(lived, spec):
    settings, served = lived
    missing = next(i for i, v in enumerate(served["discount"].to_pylist()) if v is None)
    assert check(settings, spec, _with(served, missing, "discount", math.nan)).mismatches == 0
    row = int(np.flatnonzero(np.isnan(served["item_top_number"].to_numpy()))[0])
    other_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    assert check(settings, spec, _with(served, row, "item_top_number", other_nan)).mismatches == 0
    report = check(settings, spec, _with(served, row, "item_top_number", 0.0))
    assert (report.by_feature, report.by_cause) == ({"item_top_number": 1}, {"formula": 1})
    assert (report.first[0].served, report.first[0].log) == (0.0, None)


def test_bits_tell_what_equality_hides():
    other_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    found = bits(pa.array([0.0, -0.0, None, math.nan, other_nan], from_pandas=False))
    assert found[0] != found[1]
    assert len(set(found[2:].tolist())) == 1
    assert bits(pa.array([2**62 + 1])).tolist() == [2**62 + 1]


def test_a_row_that_online_had_left_behind_is_told_once(lived, spec):
    settings, served = lived
    early, late = served.slice(60, 6).to_pylist(), served.slice(210, 6).to_pylist()
    old, new = next((a, b) for a in early for b in late if a["item_id"] == b["item_id"])
    row = served["impression_id"].to_pylist().index(new["impression_id"])
    view = "coupons_by_item_id"
    stuck = served
    for name in (f"{view}__at", *(feature.name for feature in spec.views[view])):
        stuck = _with(stuck, row, name, old[name])
    report = check(settings, spec, _again(spec, stuck))  # consistent in itself, only old
    assert (report.by_feature, report.by_cause) == ({f"{view}__at": 1}, {"store": 1})
    one = report.first[0]
    assert one.impression_id == new["impression_id"]
    assert one.served == old[f"{view}__at"].isoformat() < one.history


def test_a_key_that_was_written_but_not_found_is_told(lived, spec):
    settings, served = lived
    row, view = 215, "coupons_by_item_id"
    report = check(settings, spec, _with(served, row, f"{view}__at", None))
    told = {f.name for f in spec.views[view] if served[f.name][row].as_py() != f.empty}
    assert set(report.by_feature) >= {f"{view}__at", *told}
    assert report.by_cause == {"store": report.mismatches}


def test_a_row_may_be_younger_than_its_request(lived, spec):
    settings, served = lived
    rows = served.slice(served.num_rows - 6)
    at_us, _ = _read_us(rows, "coupons_by_item_id")
    asked_us = pa.array(np.full(6, at_us.max() - SECOND)).cast(TIME)  # the tick came in between
    place = rows.schema.get_field_index("served_at")
    rows = _again(spec, rows.set_column(place, rows.schema.field(place), asked_us))
    assert check(settings, spec, rows).mismatches == 0


@pytest.fixture
def copied(lived, tmp_path: Path) -> tuple[Settings, pa.Table]:
    """The same home, to be damaged."""
    settings, served = lived
    shutil.copytree(settings.home, tmp_path / "home")
    return replace(settings, home=tmp_path / "home"), served


def _part(settings: Settings, spec: LineSpec, served: pa.Table, row: int, view: str) -> Path:
    """The file that holds the row which the server read."""
    at_us = served[f"{view}__at"].cast(pa.int64())[row].as_py()
    home = settings.line_home(spec.line)
    return next(home / tick.features[view] for tick in ticks(home) if tick.at_us == at_us)


def test_an_altered_part_is_history_s_fault(copied, spec):
    settings, served = copied
    row, view, name = 230, "coupons_by_item_id", "item_impressions_count_10m"
    path = _part(settings, spec, served, row, view)
    part = pq.read_table(path, partitioning=None)
    raised = pc.add(part[name], 1)
    pq.write_table(part.set_column(part.schema.get_field_index(name), name, raised), path)
    report = check(settings, spec, served)
    assert set(report.by_cause) == {"history"}
    one = next(m for m in report.first if m.impression_id == served["impression_id"][row].as_py())
    assert one.feature == name
    assert one.history == one.log + 1 == one.served + 1


def test_a_part_that_is_gone_is_a_lost_row(copied, spec):
    settings, served = copied
    row, view = 230, "coupons_by_item_id"
    _part(settings, spec, served, row, view).unlink()
    report = check(settings, spec, served)
    ids = {m.impression_id for m in report.first if m.feature == f"{view}__at"}
    assert served["impression_id"][row].as_py() in ids
    assert report.by_cause == {"lost_row": report.mismatches}


def test_a_torn_part_ends_the_check(copied, spec):
    settings, served = copied
    _part(settings, spec, served, 230, "coupons_by_item_id").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="coupons_by_item_id: a part is not readable"):
        check(settings, spec, served)


def test_a_change_that_no_tick_wrote_is_a_lost_row(copied, spec):
    settings, served = copied
    home, view, row = settings.line_home(spec.line), "coupons_by_item_id", 230
    key = served["item_id"][row].as_py()
    after_us = T0 + 16 * 20 * SECOND
    old = None
    for path in sorted((home / "features" / view).glob("b=*.parquet")):
        part = pq.read_table(path, partitioning=None)
        mine = pc.equal(part["item_id"], key)
        if int(path.stem[2:]) < 16:
            old = [*part.filter(mine).to_pylist(), old][0]
        else:
            pq.write_table(part.filter(pc.invert(mine)), path)
    stuck = served
    for place in range(served.num_rows):
        late = served["served_at"].cast(pa.int64())[place].as_py() > after_us
        if late and served["item_id"][place].as_py() == key:
            for name in (f"{view}__at", *(feature.name for feature in spec.views[view])):
                value = old["event_timestamp" if name.endswith("__at") else name]
                stuck = _with(stuck, place, name, value)
    report = check(settings, spec, _again(spec, stuck))
    assert report.by_cause == {"lost_row": report.mismatches}
    assert report.mismatches > 0
    one = report.first[-1]
    assert one.served == one.history != one.log


def test_a_value_of_another_declaration_is_the_version_s_fault(copied, spec):
    settings, served = copied
    skewed = _with(served, 17, "item_ctr_1m", math.nextafter(0.5, 1))
    for code, cause in ((code_of(spec), "formula"), ("headrace-0.0.1+other", "version")):
        version = LineStore(settings.line_home(spec.line), spec.line).publish(
            {"w": np.zeros(1, np.float32)}, parent=None, from_tick=0, to_tick=1, excluded=[],
            watermark_us=0, event_at_us=0, feature_service=spec.feature_service, code=code,
            rows=1, metrics={},
        )  # fmt: skip
        report = check(settings, spec, _with(skewed, 17, "version", version.version))
        assert report.by_cause == {cause: 1}
        assert report.first[0].version == version.version


def test_a_formula_that_changed_after_serving_is_named(lived, spec, monkeypatch):
    settings, served = lived
    now = requests.transform

    def changed(spec: LineSpec, table: pa.Table) -> pa.Table:
        inputs = now(spec, table)
        place = inputs.schema.get_field_index("item_ctr_1m")
        return inputs.set_column(place, inputs.schema.field(place), pc.round(inputs[place], 2))

    monkeypatch.setattr(requests, "transform", changed)
    report = check(settings, spec, served)
    assert set(report.by_feature) == {"item_ctr_1m"}
    assert report.by_cause == {"formula": report.mismatches}


TTL_US = 25 * SECOND


def _read_us(served: pa.Table, view: str) -> tuple[np.ndarray, np.ndarray]:
    at = np.array([-1 if v is None else v for v in served[f"{view}__at"].cast("int64").to_pylist()])
    return at, served["served_at"].cast("int64").to_numpy()


def _expired(spec: LineSpec, served: pa.Table) -> pa.Table:
    """The rows as a server gives them that honours the ttl."""
    for view, features in spec.views.items():
        at_us, now_us = _read_us(served, view)
        for row in np.flatnonzero((at_us >= 0) & (at_us < now_us - TTL_US)).tolist():
            served = _with(served, row, f"{view}__at", None)
            for feature in features:
                served = _with(served, row, feature.name, feature.empty)
    return _again(spec, served)


def test_rows_expire_as_feast_has_it(lived, spec):
    settings, served = lived
    view = "coupons_by_user_id"
    at_us, now_us = _read_us(served, view)
    old = (at_us >= 0) & (at_us < now_us - TTL_US)
    assert 0 < old.sum() < served.num_rows
    expiring = spec.model_copy(update={"feature_ttl": TTL_US})
    report = parity.check(settings, expiring, served, history="parts")
    assert report.by_feature[f"{view}__at"] == old.sum()
    assert report.by_cause["ttl"] == sum(report.by_feature[f"{v}__at"] for v in spec.views)
    honest = _expired(spec, served)
    assert parity.check(settings, expiring, honest, history="parts").mismatches == 0
    due = (at_us >= now_us - TTL_US) & (at_us < now_us - 6 * SECOND)
    row = next(row for row in np.flatnonzero(due) if (at_us == at_us[row]).sum() > 1)
    withheld = _with(honest, row, f"{view}__at", None)
    report = parity.check(settings, expiring, withheld, history="parts", shown=None)
    assert ("ttl", f"{view}__at") in {(m.cause, m.feature) for m in report.first}


def test_the_served_log_is_checked_in_batches_from_any_offset(copied, spec, monkeypatch):
    settings, served = copied
    log = FileLog(
        settings.line_home(spec.line) / "log" / "served", served_schema(spec), writer=True
    )
    wrong = _with(served, 199, "item_ctr_1m", 0.5)
    for start in range(0, 240, 60):
        log.append(_with(wrong, 3, "version", "bootstrap").slice(start, 60).combine_chunks())
    log.close()
    whole = parity.check(settings, spec, history="parts")
    assert (whole.rows, whole.mismatches, whole.first[0].offset) == (239, 1, 199)
    monkeypatch.setattr(job, "BATCH_ROWS", 120)
    assert parity.check(settings, spec, history="parts") == whole
    since = parity.offset_of(settings, spec, T0 + 20 * 20 * SECOND)
    assert (since, parity.offset_of_last(settings, spec, 50)) == (120, 190)
    assert parity.offset_of_last(settings, spec, 999) == 0
    assert parity.check(settings, spec, from_offset=since, history="parts").rows == 120
    assert parity.check(settings, spec, from_offset=200, history="parts").mismatches == 0


def test_without_served_rows_there_is_nothing_to_compare(spec, tmp_path: Path):
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    assert parity.check(settings, spec) == ParityReport(history="feast")


@pytest.mark.parametrize(
    ("newest", "others", "cause"),
    [
        (0, [], ""),
        (90, [], "late_push"),
        (90, [(90, 220)], "late_push"),
        (90, [(90, 220), (95, 150)], "late_push"),
        (90, [(90, 150)], "store"),
        (90, [(95, 150)], "lost_row"),
        (90, [(95, 220)], "lost_row"),
    ],
)
def test_a_newer_row_that_was_due_is_told_by_what_others_saw(newest, others, cause):
    """A row stamped 80 was read at 200; the others are (stamp, read at)."""
    at, read = (np.array(column) for column in zip((80, 200), *others, strict=True))
    rows = Rows(read, at, np.where(np.arange(at.size) == 0, newest, 0), np.ones(at.size, bool))
    assert of_rows(rows, None).tolist() == [cause] + [""] * len(others)


def test_the_first_place_where_values_part_is_the_cause():
    served, log, history = (
        np.array(column) for column in ([1, 2, 1, 2, 3], [1, 1, 1, 1, 1], [1, 1, 2, 2, 2])
    )
    assert of_windows(served, log, history).tolist() == ["", "store", "history", "tick", "history"]


@pytest.fixture(scope="module")
def day(spec: LineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of five hours in ticks of a minute: repeated, early, late and unmatched records."""
    home, random, ids = tmp_path_factory.mktemp("day"), np.random.default_rng(3), 0
    log = FileLog(home / "log" / "events", event_schema(spec), writer=True)
    (home / "ticks").mkdir()
    rows: list[dict[str, object]] = []
    for tick in range(300):
        now_us, first = T0 + tick * 60 * SECOND, len(rows)
        for _ in range(random.integers(1, 30)):
            kind = random.random()
            ids += kind < 0.5
            # a click names one of the last ids or the next, an impression now and then an old one
            back = 0 if kind < 0.5 else random.integers(-1, 60)
            lag_us = int(random.choice([0, 5, 60, 290, 700, 890])) * SECOND
            rows.append(
                {
                    "event": "impression" if kind < 0.6 else "click",
                    "impression_id": f"i{max(ids - back, 0)}",
                    "event_at": now_us - lag_us,
                    "arrival_at": now_us,
                    "value": int(kind >= 0.6),
                    **_asked(random),
                }
            )
        manifest = TickManifest(tick, now_us + 1, (first, len(rows)), (0, 0), None, None, {}, {})
        _commit(home, manifest)
    schema = event_schema(spec)
    log.append(pa.Table.from_pylist(rows, schema=_as_int(schema)).cast(schema))
    log.close()
    return home


def _commit(home: Path, manifest: TickManifest) -> None:
    text = json.dumps(manifest.to_json())
    (home / "ticks" / f"{manifest.tick:08d}.json").write_text(text, encoding="utf-8")


def test_a_stretch_of_the_log_gives_what_the_whole_log_gives(day: Path, spec: LineSpec):
    log, random = FileLog(day / "log" / "events", event_schema(spec)), np.random.default_rng(5)
    whole = LogWindows.read(spec, day, 0, T0 + 300 * 60 * SECOND)
    for minute in (90, 200, 280):
        from_us, to_us = (T0 + m * 60 * SECOND for m in (minute, minute + 15))
        start, stop = offsets_between(day, log, from_us - 75 * 60 * SECOND, to_us)
        assert 0 < stop - start < 0.4 * log.head
        part = LogWindows.read(spec, day, from_us, to_us)
        at_us = np.sort(random.integers(from_us, to_us, 200))
        keys = pa.Table.from_pylist([_asked(random) for _ in range(200)])
        for view in spec.views:
            values = part.values(view, keys, at_us)
            assert values.equals(whole.values(view, keys, at_us))
            assert any(pc.max(column).as_py() > 0 for column in values.columns)


def test_where_a_stretch_begins_is_checked_against_the_log_s_own_stamps(day: Path, spec: LineSpec):
    log = FileLog(day / "log" / "events", event_schema(spec))
    for minute in (0, 7, 299, 400):
        moment_us = T0 + minute * 60 * SECOND
        start, stop = offsets_between(day, log, moment_us, moment_us + 60 * SECOND)
        arrived = log.read(0, log.head)["arrival_at"].cast(pa.int64()).to_numpy()
        inside = np.flatnonzero((arrived >= moment_us) & (arrived < moment_us + 60 * SECOND))
        assert all(start <= offset < stop for offset in inside.tolist())
        assert np.all(arrived[:start] < moment_us)
    manifest = read_tick(day, 150)
    _commit(day, replace(manifest, at_us=manifest.at_us - 1))
    try:
        with pytest.raises(IntegrityError, match="do not fit the event log"):
            offsets_between(day, log, manifest.at_us - 1, manifest.at_us)
    finally:
        _commit(day, manifest)


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
