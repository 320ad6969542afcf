"""Files that people and other programs hand in, tried with made-up bytes: read, or refused by name.

As in test_outside_bytes.py; here it is whole files: events of a line, corrected labels, ticks.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cases import sheet
from headrace.errors import DeclarationError, InputError, IntegrityError
from headrace.events import event_schema
from headrace.ingest.intake import Intake
from headrace.ingest.plan import Plan
from headrace.ingest.tick import _stored_plan
from headrace.profile import with_profile
from headrace.sample import TickManifest, read_tick
from headrace.settings import load_line
from headrace.source import read_events
from tests.contract.test_outside_bytes import EVENTS, JSON, NOW_US, SPEC, TRIED, damaged
from tests.unit.test_source import CSV, LABEL, line

ROWS = [
    {
        "id": f"r{n}",
        "at": f"2026-03-0{n} 10:00:00",
        "item": "ab"[n % 2],
        "price": n / 2,
        "clicked": 1,
    }
    for n in range(1, 7)
]
TEXT = "\n".join([",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in ROWS), ""])
PACKED = io.BytesIO()
pq.write_table(pa.Table.from_pylist(ROWS), PACKED)
FILES = {
    "csv": TEXT.encode(),
    "csv.gz": gzip.compress(TEXT.encode(), mtime=0),
    "jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "parquet": PACKED.getvalue(),
}


@TRIED
@given(st.data())
def test_an_event_file_of_any_bytes_becomes_events_or_is_named(
    tmp_path: Path, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(sorted(FILES)))
    raw = data.draw(st.one_of(damaged(FILES[form]), st.binary(min_size=1, max_size=120)))
    name = f"shown.{form}"
    (tmp_path / name).write_bytes(raw)
    spec = line(CSV | {"path": name}, label=LABEL)
    try:
        events, _ = read_events(spec, tmp_path)
    except InputError as problem:
        assert str(problem)
    else:
        assert events.schema == event_schema(spec)


SHEET = (
    "line,impression_id,served_at,version,score,label,corrected_label\n"
    "coupons,i1,2026-03-01T10:00:00Z,v000001,0.5,1,0\n"
    'coupons,"i,2",2026-03-01T10:00:01Z,v000001,0.5,0,\n'
)


@TRIED
@given(st.one_of(damaged(SHEET.encode()), st.binary(max_size=200), st.text().map(str.encode)))
def test_a_sheet_of_labels_of_any_bytes_is_answers_and_refusals_or_named(
    tmp_path: Path, raw: bytes
) -> None:
    path = tmp_path / "sheet.csv"
    path.write_bytes(raw)
    try:
        found = sheet.read(SPEC, path)
    except InputError as problem:
        assert "sheet.csv" in str(problem)
    else:
        assert all(one.corrected in (0, 1) and one.impression_id for one in found.answers)
        assert all(one.reason for one in found.refused)


MANIFEST = TickManifest(0, 5, (0, 9), (0, 7), "samples/b=0.parquet", None, {}, {"samples": 3})
PLAN = Plan(0, 5, (0, 9), (0, 7))
TOLD = {"manifest": MANIFEST.to_json(), "plan": PLAN.to_json()}


@TRIED
@given(st.data(), st.sampled_from(sorted(TOLD)))
def test_a_tick_of_any_bytes_is_read_or_named(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    whole = json.dumps(TOLD[kind]).encode()
    others = JSON.map(lambda value: json.dumps(value).encode())
    raw = data.draw(st.one_of(damaged(whole), others, st.binary(max_size=60)))
    path = tmp_path / "ticks" / ("00000000.json" if kind == "manifest" else "00000000.plan.json")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    try:
        found: Any = read_tick(tmp_path, 0) if kind == "manifest" else _stored_plan(path)
    except IntegrityError as problem:
        assert path.name in str(problem)
    else:
        assert isinstance(found, TickManifest | Plan)


@TRIED
@given(
    st.lists(st.one_of(st.none(), st.text(max_size=40), st.binary(max_size=40), EVENTS.map(str)))
)
def test_messages_of_a_stream_become_rows_or_reasons(values: list[Any]) -> None:
    rows, refused = Intake(SPEC).read_each(values, NOW_US)
    assert len(rows) + len(refused) == len(values)
    json.dumps(refused)  # as the side log does


DEEP = 20_000
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize("text", ["[" * DEEP, "line: " + "{" * DEEP, f"{LAUGHS}line: *a8\n"])
def test_yaml_that_is_deep_or_a_bomb_is_refused_in_a_few_words(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DeclarationError, match=r"mine\.yaml") as told:
        load_line(file)
    assert len(str(told.value)) < 2_000
    with pytest.raises(DeclarationError, match=r"mine\.yaml") as told:
        with_profile({"HEADRACE_PROFILE": "mine"}, tmp_path)
    assert len(str(told.value)) < 2_000


def test_json_that_is_deep_is_refused_and_kept_aside() -> None:
    for body in (b"[" * DEEP, b'{"events":[' + b'{"a":' * DEEP):
        rows, refused, readable = Intake(SPEC).read(body, NOW_US)
        assert (rows, len(refused), readable) == ([], 1, False)
