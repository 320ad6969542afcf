"""Parity: nothing to tell about an honest server, and every planted skew is named."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headrace import parity, requests
from headrace.bits import bits
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import TIME, event_schema, input_fields, served_schema
from headrace.ingest.tick import TickState
from headrace.labels.state import LabelState
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.parity import ParityReport, job
from headrace.parity.causes import Rows, of_rows, of_windows
from headrace.sample import ticks
from headrace.settings import Settings, load_settings
from headrace.train import code_of
from headrace.windows import WindowState
from tests.parity.lived_line import SECOND, T0


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
