"""Parsers of bytes from outside, tried with made-up ones: they read, or refuse by name.

Whatever comes, nothing but the errors that they promise comes out. Derandomized, so that a failure
fails again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import DeclarationError, InputError, IntegrityError
from headrace.events import event_schema
from headrace.ingest.intake import Intake
from headrace.line import states
from headrace.log.kafka import _decoded, _encoded
from headrace.log.segments import Segment
from headrace.model import delta
from headrace.profile import with_profile
from headrace.sealed import SealedFiles, sealed
from headrace.serving.oip.rest import read_request
from headrace.serving.oip.tensors import candidates_of
from headrace.settings import PROJECT, load_line

LINE = PROJECT / "lines" / "coupons.yaml"
SPEC = load_line(LINE)
NOW_US = 1_750_000_000_000_000
TRIED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["impression", "click", "i1", 10**400, -(2**63) - 1, "1e999", "2026-13-01"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
EVENTS = st.lists(
    st.dictionaries(
        st.sampled_from(
            ["event", "impression_id", "request_id", "event_at", "value", "x", *SPEC.columns]
        ),
        JSON,
    ),
    max_size=4,
)


def damaged(raw: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a part cut out, doubled, or overwritten."""

    def apply(start: int, length: int, put: bytes) -> bytes:
        return raw[:start] + put + raw[start + length :]

    places = st.integers(0, len(raw) - 1)
    return st.builds(apply, places, st.integers(0, 64), st.binary(max_size=16))


@TRIED
@given(st.one_of(st.binary(max_size=200), JSON, EVENTS.map(lambda events: {"events": events})))
def test_events_become_rows_that_fit_the_log_or_reasons(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    rows, refused, _ = Intake(SPEC).read(raw, NOW_US)
    schema = event_schema(SPEC)
    table = pa.Table.from_pylist([row | {"arrival_at": NOW_US} for row in rows], schema=schema)
    assert table["impression_id"].null_count == 0
    assert all(reason for reason, _ in refused)
    json.dumps(refused)  # as the side log does


def keys(body: Any) -> list[tuple[Any, ...]]:
    """Paths of all values of a document."""
    if isinstance(body, dict):
        return [(key, *rest) for key, value in body.items() for rest in [(), *keys(value)]]
    if isinstance(body, list):
        return [(at, *rest) for at, value in enumerate(body) for rest in [(), *keys(value)]]
    return []


DOCUMENT = yaml.safe_load(LINE.read_text(encoding="utf-8"))


@TRIED
@given(st.sampled_from(keys(DOCUMENT)), JSON, st.booleans())
def test_a_line_with_one_odd_value_is_declared_or_refused_by_its_file(
    tmp_path: Path, path: tuple[Any, ...], value: Any, remove: bool
) -> None:
    body = yaml.safe_load(LINE.read_text(encoding="utf-8"))
    place = body
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    file = tmp_path / "line.yaml"
    file.write_text(yaml.safe_dump(body, allow_unicode=False), encoding="utf-8")
    refuses(file)


@TRIED
@given(st.one_of(st.binary(max_size=200), damaged(LINE.read_bytes())))
def test_a_line_file_of_any_bytes_is_declared_or_refused_by_its_name(
    tmp_path: Path, raw: bytes
) -> None:
    file = tmp_path / "line.yaml"
    file.write_bytes(raw)
    refuses(file)


def refuses(file: Path) -> None:
    try:
        load_line(file)
    except DeclarationError as problem:
        assert "line.yaml" in str(problem)


@TRIED
@given(st.one_of(st.binary(max_size=100), damaged((PROJECT / "profiles/local.yaml").read_bytes())))
def test_a_profile_of_any_bytes_is_read_or_refused_by_its_name(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(raw)
    try:
        with_profile({"HEADRACE_PROFILE": "mine"}, tmp_path)
    except DeclarationError as problem:
        assert "mine.yaml" in str(problem)


RECORDS = pa.table({"n": pa.array(range(40), pa.int64()), "text": [str(n) * 3 for n in range(40)]})


@TRIED
@given(damaged(_encoded(RECORDS)))
def test_a_message_of_the_log_is_a_table_or_damaged(raw: bytes) -> None:
    try:
        found = _decoded(raw)
    except IntegrityError:
        return
    assert isinstance(found, pa.Table)


@TRIED
@given(st.data())
def test_a_segment_of_any_bytes_is_read_or_named(tmp_path: Path, data: st.DataObject) -> None:
    segment = Segment.of(tmp_path, 0, RECORDS.num_rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, RECORDS.schema) as writer:
        writer.write_table(RECORDS)
    segment.path.write_bytes(data.draw(damaged(bytes(sink.getvalue()))))
    try:
        segment.load(RECORDS.schema)
    except IntegrityError as problem:
        assert segment.path.name in str(problem)


@TRIED
@given(st.one_of(damaged(sealed({"version": "v000001", "rows": 7})), st.binary(max_size=99)))
def test_sealed_json_is_what_was_sealed_or_damaged(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.json").write_bytes(raw)
    try:
        found = SealedFiles(tmp_path).read_json("a.json")
    except IntegrityError as problem:
        assert "a.json" in str(problem)
    else:
        assert found == {"version": "v000001", "rows": 7}


PARENT = {"table": np.zeros((50, 4), np.float32), "step": np.zeros(1, np.int64)}
CHILD = PARENT | {"table": np.eye(50, 4, dtype=np.float32)}
PACKED = safetensors.numpy.save(delta.diff(PARENT, CHILD))


@TRIED
@given(
    st.dictionaries(
        st.sampled_from(["rows/table", "values/table", "whole/step", "gone/table", "x/y", "rows/"]),
        st.sampled_from(
            [
                np.zeros((2, 4), np.float32),
                np.array([0, 1]),
                np.array([49, 50]),
                np.array([-1, 3]),
                np.array([0.5, 1.5]),
                np.zeros(0, np.int64),
                np.zeros((2, 3), np.float32),
            ]
        ),
    )
)
def test_a_delta_of_any_arrays_is_applied_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = delta.apply(PARENT, changes)
    except IntegrityError:
        return
    assert PARENT["table"].sum() == 0
    assert set(found) <= {"table", "step"}


@TRIED
@given(damaged(PACKED))
def test_a_file_of_a_delta_is_what_was_published_or_damaged(tmp_path: Path, raw: bytes) -> None:
    import hashlib

    from headrace.line.store import Stored

    (tmp_path / "delta.bin").write_bytes(raw)
    stored = Stored("delta.bin", hashlib.sha256(PACKED).hexdigest(), whole=False)
    if raw == PACKED:
        return
    with pytest.raises(IntegrityError, match=r"delta\.bin"):
        states.read(SealedFiles(tmp_path), stored)


HEADER = {
    "inputs": [
        {
            "name": "user_id",
            "datatype": "BYTES",
            "shape": [2],
            "parameters": {"binary_data_size": 12},
        },
        {
            "name": "discount",
            "datatype": "FP64",
            "shape": [2],
            "parameters": {"binary_data_size": 16},
        },
    ]
}
JSON_PART = json.dumps(HEADER).encode()
BINARY = JSON_PART + b"\x02\0\0\0u1\x02\0\0\0u2" + np.array([0.1, 0.2]).tobytes()


@TRIED
@given(
    st.one_of(damaged(BINARY), st.binary(max_size=60)),
    st.one_of(st.just(str(len(JSON_PART))), st.none(), st.text(max_size=5), st.integers().map(str)),
)
def test_a_binary_request_is_candidates_or_refused(raw: bytes, length: str | None) -> None:
    try:
        _, inputs = read_request(raw, length)
        found = candidates_of(SPEC, inputs)
    except (InputError, ValueError) as problem:  # pydantic's is a ValueError; both are a 400
        assert str(problem)
    else:
        assert list(found.columns) == list(SPEC.columns)
        assert {len(values) for values in found.columns.values()} == {found.num_rows}
