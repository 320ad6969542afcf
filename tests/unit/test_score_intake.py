"""Rows of files that are to be scored: what is taken, what refuses a row, what refuses the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import TIME
from headrace.scoring.files import InputFile
from headrace.scoring.intake import Intake, Refused

SPEC = LineSpec.model_validate(
    {
        "line": "toy",
        "columns": {"user": "string", "item": "int", "price": "float"},
        "source": {"kind": "live"},
        "label": {"engagement": "click", "attribution_window": "1h"},
        "windows": [
            {"name": "shows", "key": ["item"], "event": "impression", "aggregate": "count"}
            | {"window": "1h"}
        ],
        "request_features": [{"name": "user_id", "kind": "hash", "of": "user"}],
        "model": {"categorical": ["user_id"]},
    }
)
GOOD: dict[str, Any] = {"user": ["ann"], "item": [7], "price": [2.5], "asked": ["2026-01-01T00Z"]}
NEW_YEAR_US = 1_767_225_600_000_000


def take(at: str | None = "asked", **columns: Any) -> tuple[pa.Table, list[Refused]]:
    table = pa.table(GOOD | columns)
    return Intake(SPEC, table.schema, at, "rows.csv").take(table, 1)


@pytest.mark.parametrize(
    ("column", "given", "taken"),
    [
        ("item", pa.array([2**62 + 1]), 2**62 + 1),
        ("item", pa.array([5], pa.uint8()), 5),
        ("item", pa.array([5.0]), 5),
        ("item", pa.array([float("nan")]), None),
        ("item", pa.array(["-12"]), -12),
        ("item", pa.nulls(1), None),
        ("item", pa.array([""]), None),
        ("price", pa.array([""]), None),
        ("price", pa.array([3], pa.int16()), 3.0),
        ("price", pa.array(["1e-3"]), 1e-3),
        ("price", pa.array([float("nan")]), None),
        ("user", pa.array(["bob"]).dictionary_encode(), "bob"),
        ("user", pa.array(["bob"], pa.large_string()), "bob"),
        ("user", pa.array([""]), ""),
    ],
)
def test_what_loses_nothing_is_taken(column: str, given: pa.Array, taken: object) -> None:
    rows, refused = take(**{column: given})
    assert refused == []
    assert rows[column].to_pylist() == [taken]
    types = {"user": pa.string(), "item": pa.int64(), "price": pa.float64(), "asked": TIME}
    assert {name: rows.schema.field(name).type for name in types} == types


@pytest.mark.parametrize(
    "given",
    [
        pa.array(["2026-01-01T01:00:00+01:00"]),
        pa.array([str(NEW_YEAR_US)]),
        pa.array([NEW_YEAR_US]),
        pa.array([NEW_YEAR_US * 1_000 + 999]).cast(pa.timestamp("ns", tz="Europe/Berlin")),
        pa.array([NEW_YEAR_US // 1_000_000]).cast(pa.timestamp("s", tz="UTC")),
    ],
)
def test_a_moment_is_said_in_several_ways(given: pa.Array) -> None:
    rows, refused = take(asked=given)
    assert refused == []
    assert rows["asked"].cast(pa.int64()).to_pylist() == [NEW_YEAR_US]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("item", 2**63, "item: 9223372036854775808 is not a 64-bit integer"),
        ("item", 1.5, "item: 1.5 is not a 64-bit integer"),
        ("item", 2.0**60, "item: 1.152921504606847e+18 is not a 64-bit integer"),
        ("item", "seven", "item: 'seven' is not a 64-bit integer"),
        ("price", float("inf"), "price: inf is not a finite number"),
        ("price", "dear", "price: 'dear' is not a finite number"),
        ("user", "x" * 5000, "user: longer than 4096 characters"),
        ("asked", None, "asked: missing; say when the row was asked"),
        ("asked", "yesterday", "asked: 'yesterday' is not an ISO 8601 time"),
        ("asked", "2026-01-01", "asked: '2026-01-01' has no zone; add Z or an offset"),
        ("asked", -1, "asked: lies before 1970"),
    ],
)
def test_a_row_is_refused_with_its_reason_and_the_others_stay(
    column: str, value: object, reason: str
) -> None:
    good = 1.0 if isinstance(value, float) else NEW_YEAR_US if isinstance(value, int) else "5"
    good = "2026-01-01T00:00:00Z" if column == "asked" and not isinstance(value, int) else good
    kind = pa.uint64() if value == 2**63 else None
    columns = {name: values * 3 for name, values in GOOD.items()}
    columns[column] = pa.array([good, value, good], kind)
    rows, refused = take(**columns)
    assert [(one.row, one.reason) for one in refused] == [(2, reason)]
    assert refused[0].raw["price"] == columns["price"][1] or column == "price"
    assert rows.num_rows == 2


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"item": pa.array([True])}, ["'item' is of type bool", "write it as int"]),
        ({"user": pa.array([5])}, ["'user' is of type int64", "write it as string"]),
        ({"asked": pa.array([1]).cast(pa.timestamp("us"))}, ["'asked'", "timestamp with a zone"]),
        ({"score": pa.array([0.5])}, ["'score'", "rename or drop it"]),
        ({"watermark": pa.array([0.5])}, ["'watermark'", "rename or drop it"]),
    ],
)
def test_a_column_that_cannot_be_meant_refuses_the_file(columns: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        take(**columns)
    assert [word for word in words if word not in str(refused.value)] == []


def test_a_column_that_is_absent_or_there_twice_is_named() -> None:
    table = pa.table(GOOD)
    with pytest.raises(InputError, match=r"no column 'price'.*needs the columns of line 'toy'"):
        Intake(SPEC, table.drop(["price"]).schema, None, "rows.csv")
    with pytest.raises(InputError, match="no column 'when'"):
        Intake(SPEC, table.schema, "when", "rows.csv")
    twice = pa.table([[1], *table.columns], names=["user", *table.column_names])
    with pytest.raises(InputError, match="'user' is there twice"):
        Intake(SPEC, twice.schema, None, "rows.csv")


def test_rows_that_say_what_was_read_may_say_nothing_of_a_key() -> None:
    rows, refused = take(toy_by_item__at=pa.array([None, ""])[:1].cast(pa.string()))
    assert refused == []
    assert rows["toy_by_item__at"].to_pylist() == [None]
    assert rows.schema.field("toy_by_item__at").type == TIME


def read(path: Path) -> pa.Table:
    with InputFile(path) as file:
        table = pa.concat_tables([file.schema.empty_table(), *file.tables()])
        assert file.done == file.total
    return table


def test_torn_lines_of_a_csv_are_kept_aside_and_empty_fields_are_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('user,item\nann,1\n"bo\nb",2\ntoo,many,fields\n,\nNA,nan\n')
    with InputFile(path) as file:
        table = pa.concat_tables(list(file.tables()))
    assert table.to_pydict() == {
        "user": ["ann", "bo\nb", None, "NA"],
        "item": ["1", "2", None, "nan"],
    }
    assert [(one.row, one.raw) for one in file.torn] == [(None, "too,many,fields")]
    assert "3 fields where the header has 2" in file.torn[0].reason


def test_all_formats_hold_the_same_rows(tmp_path: Path) -> None:
    table = pa.table({"user": ["ann", None], "item": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=1)
    with pa.ipc.new_stream(tmp_path / "c.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=1)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        assert read(tmp_path / name).equals(table), name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.json", b"{}", "ends in none of .parquet, .csv, .arrow"),
        ("none.csv", None, "no such file"),
        ("rows.parquet", b"PAR1 what?", "not readable as parquet"),
        ("rows.arrow", b"what is this", "not readable as arrow"),
        ("rows.csv", b"", "not readable as csv"),
        ("more.csv", b"user\n\xff\xfe\n", "not readable as csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read(tmp_path / name)
