"""Files of odd shapes become one log; every row ends in a count; what does not fit is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from headrace.declaration import DelayDistribution, LineSpec
from headrace.errors import InputError
from headrace.source import read_events
from headrace.source.times import draw_delays, to_utc

Line = Callable[..., LineSpec]


def line(impressions: dict[str, Any], outcome: str = "implicit", **source: Any) -> LineSpec:
    return LineSpec.model_validate(
        {
            "line": "odd",
            "timezone": source.pop("timezone", "UTC"),
            "columns": source.pop("columns", {"item": "string", "price": "float", "slot": "int"}),
            "source": {"kind": "files", "impressions": impressions, **source},
            "label": {"engagement": "click", "outcome": outcome, "attribution_window": "1d"},
            "request_features": [{"name": "item_id", "kind": "hash", "of": "item"}],
            "model": {"categorical": ["item_id"]},
        }
    )


CSV: dict[str, Any] = {
    "path": "shown.csv",
    "id": "id",
    "time": {"expression": "at"},
    "columns": {"item": "item", "price": "price"},
}
LABEL: dict[str, Any] = {"value": "clicked", "delay_s": "60"}


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def write(folder: Path, text: str, name: str = "shown.csv") -> None:
    (folder / name).write_text(text, encoding="utf-8")


def test_parquet_with_epoch_milliseconds_and_a_known_at_column(tmp_path: Path) -> None:
    table = pa.table(
        {
            "ts": pa.array([1_700_000_060_000, 1_700_000_000_123], pa.int64()),
            "Item Name": ["b", None],
            "bought": [True, None],
            "bought_at": pa.array([1_700_000_090_000, None], pa.int64()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    (tmp_path / "part.parquet.gz").write_bytes(gzip.compress(sink.getvalue().to_pybytes()))
    spec = line(
        {
            "path": "part.parquet.gz",
            "time": {"expression": "ts", "format": "unix_ms"},
            "columns": {"item": '"Item Name"'},
        },
        label={"value": "bought", "known_at": {"expression": "bought_at", "format": "unix_ms"}},
        columns={"item": "string"},
    )
    events, counts = read_events(spec, tmp_path)
    assert events["event"].to_pylist() == ["impression", "impression", "click"]
    assert events["impression_id"].to_pylist() == ["2", "1", "1"]
    assert events["item"].to_pylist() == [None, "b", None]
    at = events["arrival_at"].cast(pa.int64()).to_pylist()
    assert at == [1_700_000_000_123_000, 1_700_000_060_000_000, 1_700_000_090_000_000]
    assert (counts.rows, counts.impressions, counts.engagements) == (2, 2, 1)
    assert (counts.unlabelled, counts.unsorted) == (1, 1)


def test_json_lines_with_labels_in_a_second_gzipped_csv(tmp_path: Path) -> None:
    shown = [
        {"key": {"id": "a"}, "t": "2024-05-01T12:00:00+02:00", "item": "x", "price": 3},
        {"key": {"id": "b"}, "t": "2024-05-01T10:00:01Z", "item": "y", "price": 4.5},
        {"key": {"id": None}, "t": "2024-05-01T10:00:02Z", "item": "z"},
        {"key": {"id": "d"}, "t": "soon", "item": "z"},
    ]
    lines = [json.dumps(row) for row in shown]
    write(tmp_path, "\n".join([*lines, "{broken", ""]), "shown.jsonl")
    clicks = (
        "ref;seconds;kind\n"
        "a;1714557600;click\n"  # the same instant as its impression
        "b;'1714557610.5';click\n"
        "b;1714557605;click\n"
        "ghost;1714557605;click\n"
        "a;1714557606;scroll\n"
        "a;;click\n"
    ).replace("'", '"')
    with gzip.open(tmp_path / "clicks.csv", "wt", encoding="utf-8") as stream:
        stream.write(clicks)
    spec = line(
        {"path": "shown.jsonl", "id": "key.id", "time": {"expression": "t"},
         "columns": {"item": "item", "price": "price"}},
        engagements={
            "path": "clicks.csv", "separator": ";", "where": "kind = 'click'",
            "impression_id": "ref", "time": {"expression": "seconds", "format": "unix_s"},
        },
    )  # fmt: skip
    events, counts = read_events(spec, tmp_path)
    seen = list(zip(events["event"].to_pylist(), events["impression_id"].to_pylist(), strict=True))
    assert seen == [
        ("impression", "a"),  # an impression precedes an engagement at the same time
        ("click", "a"),
        ("impression", "b"),
        ("click", "b"),
        ("click", "ghost"),
        ("click", "b"),
    ]
    assert events["arrival_at"][0].as_py() == utc(2024, 5, 1, 10)
    assert (counts.rows, counts.unparsable, counts.malformed, counts.impressions) == (5, 1, 3, 2)
    assert counts.rows == counts.excluded + counts.malformed + counts.impressions
    detail = counts.engagement_file
    assert detail == {"rows": 6, "malformed": 1, "excluded": 1, "empty": 0, "records": 4}
    assert (counts.engagements, counts.unmatched) == (4, 1)
    shown_first = " ".join(counts.malformed_first)
    for part in ("{broken", "no id", "'soon'", "'iso'"):
        assert part in shown_first


def test_tsv_without_header_with_a_12_hour_clock_and_label_text(tmp_path: Path) -> None:
    write(
        tmp_path,
        '1\t"a\t3/9/2024 11:59:30 PM\tyes\t\n'
        "2\tb\t3/10/2024 12:00:00 AM\tno\t7\n"
        "3\tc\t3/10/2024 2:30:00 AM\tNA\t8\n",  # an hour that New York skips
        "shown.tsv",
    )
    spec = line(
        {
            "path": "*.tsv",
            "header": False,
            "quoted": False,
            "names": ["n", "item", "at", "answer", "slot"],
            "missing": ["", "NA"],
            "time": {"expression": "at", "format": "%m/%d/%Y %I:%M:%S %p"},
            "columns": {"item": "item", "slot": "slot"},
        },
        outcome="explicit",
        timezone="America/New_York",
        label={"value": "answer = 'yes'", "delay_s": "30"},
    )
    events, counts = read_events(spec, tmp_path)
    assert events["event_at"].to_pylist() == [
        utc(2024, 3, 10, 4, 59, 30),
        utc(2024, 3, 10, 5),
        utc(2024, 3, 10, 5),
        utc(2024, 3, 10, 5, 0, 30),
        utc(2024, 3, 10, 7),  # the first instant after the gap
    ]
    assert events["value"].to_pylist() == [0, 0, 1, 0, 0]
    assert events["item"].to_pylist() == ['"a', "b", None, None, "c"]
    assert events["slot"].to_pylist() == [None, 7, None, None, 8]
    assert (counts.impressions, counts.engagements, counts.unlabelled) == (3, 2, 1)


def test_exploded_pieces_become_impressions_and_empty_lists_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "r,at,shown\n1,2024-01-01 00:00:00,A-0 B-1 A-0\n2,2024-01-01,\n")
    spec = line(
        {
            "path": "shown.csv",
            "explode": {"column": "shown", "into": "piece"},
            "derive": {"which": "split_part(piece, '-', 1)", "hit": "split_part(piece, '-', 2)"},
            "id": "r || ':' || which",
            "time": {"expression": "at"},
            "columns": {"item": "which"},
        },
        label={"value": "hit", "delay": {"median": "30s", "sigma": 1.0, "seed": 3}},
    )
    events, counts = read_events(spec, tmp_path)
    assert events["impression_id"].to_pylist() == ["1:A", "1:B", "1:A", "1:B"]
    assert (counts.rows, counts.empty, counts.records, counts.impressions) == (2, 1, 3, 3)
    assert (counts.duplicates, counts.silent, counts.engagements) == (1, 2, 1)


def test_an_explicit_outcome_may_be_known_later_than_it_happened(tmp_path: Path) -> None:
    write(tmp_path, "id,at\na,2024-01-01T00:00:00Z\n")
    write(
        tmp_path, "a,2024-01-01 00:01,2024-01-01 06:00,0\na,2024-01-01 00:01,2024-01-02,\n", "o.csv"
    )
    spec = line(
        {**CSV, "columns": {}},
        outcome="explicit",
        engagements={
            "path": "o.csv", "header": False, "names": ["ref", "happened", "told", "value"],
            "impression_id": "ref", "time": {"expression": "happened"},
            "known_at": {"expression": "told"}, "value": "value",
        },
    )  # fmt: skip
    events, counts = read_events(spec, tmp_path)
    assert events["event_at"].to_pylist()[1] == utc(2024, 1, 1, 0, 1)
    assert events["arrival_at"].to_pylist()[1] == utc(2024, 1, 1, 6)
    assert events["value"].to_pylist() == [0, 0]
    assert counts.unlabelled == 1


def test_a_glob_reads_all_its_files(tmp_path: Path) -> None:
    write(tmp_path, "id,at,item,price,clicked\na,2024-01-01,x,1,0\n", "day-1.csv")
    write(tmp_path, "item,id,at,clicked,price\ny,b,2024-01-02,1,2\n", "day-2.csv")
    events, counts = read_events(line({**CSV, "path": "day-*.csv"}, label=LABEL), tmp_path)
    assert events["item"].to_pylist() == ["x", "y", None]
    assert counts.rows == 2


def test_rows_with_too_few_or_too_many_fields_are_malformed_and_shown(tmp_path: Path) -> None:
    body = "id,at,item,price,clicked\n" + "".join(f"k{i},2024-01-01,x,1,0\n" for i in range(9))
    write(tmp_path, body + "short,2024-01-01\nlong,2024-01-01,x,1,0,9\nk9,2024-01-01,x,cheap,1\n")
    _, counts = read_events(line(CSV, label=LABEL), tmp_path)
    assert (counts.rows, counts.malformed, counts.impressions) == (12, 2, 10)
    assert "short" in counts.malformed_first[0]
    assert "long" in counts.malformed_first[1]
    assert counts.unreadable_values == {"price": 1}


def test_drawn_delays_follow_the_id_and_the_seed_alone() -> None:
    delay = DelayDistribution(median="30s", sigma=1.2, seed=7)  # type: ignore[arg-type]
    ids = pa.array([f"i{n}" for n in range(20_000)])
    drawn = draw_delays(ids, delay)
    backwards = draw_delays(ids[::-1], delay)
    assert (drawn[::-1] == backwards).all()
    assert abs(np.median(drawn) / 30e6 - 1) < 0.05
    assert abs(np.std(np.log(drawn)) - 1.2) < 0.03
    other = draw_delays(ids, delay.model_copy(update={"seed": 8}))
    assert abs(np.corrcoef(np.log(drawn), np.log(other))[0, 1]) < 0.03


def test_a_repeated_hour_is_its_first_pass() -> None:
    repeated = int(datetime(2013, 11, 3, 1, 30, tzinfo=UTC).timestamp()) * 1_000_000
    at = to_utc(np.array([repeated, repeated]), np.array([False, True]), "America/New_York")
    assert at.tolist() == [repeated + 4 * 3_600_000_000, repeated]


GOOD = "id,at,item,price,clicked\na,2024-01-01,x,1,0\nb,2024-01-02,y,2,1\n"


@pytest.mark.parametrize(
    ("impressions", "label", "text", "named"),
    [
        ({"path": "shwon.csv"}, {}, GOOD, ["shwon.csv", "shown.csv"]),
        ({"path": "../shown.csv"}, {}, GOOD, ["../shown.csv", "data folder"]),
        ({}, {}, "", ["shown.csv", "empty"]),
        ({}, {}, "id,at,item,price,clicked\n", ["no rows"]),
        (
            {"columns": {"item": "itme"}}, {}, GOOD,
            ["source.impressions.columns.item", "'itme'", "item (VARCHAR)"],
        ),
        ({"where": "nope > 1"}, {}, GOOD, ["source.impressions.where", "'nope'", "price"]),
        ({"derive": {"d": "CAST(item AS INT)"}}, {}, GOOD, ["source.impressions.derive.d", "'x'"]),
        ({"time": {"expression": "at", "format": "%d.%m.%Y"}}, {}, GOOD, ["'2024-01-01'", "%d.%m"]),
        ({"time": {"expression": "price * 1e15", "format": "unix_s"}}, {}, GOOD, ["unix_s"]),
        ({}, {"value": "clicked = 1 AND"}, GOOD, ["source.label.value"]),
        ({"columns": {}}, {"value": "item"}, GOOD, ["source.label.value", "'x'", "0, 1 or NULL"]),
        ({}, {"delay_s": "wait"}, GOOD, ["source.label.delay_s", "'wait'"]),
        ({}, {"delay_s": "(SELECT size FROM read_text('/etc/passwd'))"}, GOOD, ["delay_s"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, impressions: dict[str, Any], label: dict[str, Any], text: str, named: list[str]
) -> None:
    write(tmp_path, text)
    spec = line({**CSV, **impressions}, label={**LABEL, **label})
    with pytest.raises(InputError) as caught:
        read_events(spec, tmp_path)
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "label", "derive"),
    [
        ({"item": "clicked"}, {"value": "clicked"}, {}),
        ({"item": "Clicked || ''"}, {"value": "clicked"}, {}),
        ({"item": '"clicked"'}, {"value": "CASE WHEN clicked = 1 THEN 1 ELSE 0 END"}, {}),
        ({"item": "twice"}, {"value": "clicked"}, {"twice": "clicked * 2"}),
        ({"item": "raw"}, {"value": "clicked"}, {"clicked": "CAST(raw AS INT)"}),
    ],
)
def test_the_label_may_not_become_a_feature(
    columns: dict[str, str], label: dict[str, str], derive: dict[str, str]
) -> None:
    with pytest.raises(ValidationError, match="may not become a feature"):
        line({**CSV, "columns": columns, "derive": derive}, label={**LABEL, **label})


def test_sql_keywords_in_label_and_column_are_no_leak() -> None:
    line(
        {**CSV, "columns": {"item": "CASE WHEN item IS NULL THEN 'none' ELSE item END"}},
        label={**LABEL, "value": "CASE WHEN clicked IS NULL THEN 0 ELSE 1 END"},
    )


def test_a_second_file_needs_an_id_to_join_by() -> None:
    with pytest.raises(ValidationError, match=r"source\.impressions\.id"):
        line(
            {**CSV, "id": None},
            engagements={"path": "c.csv", "impression_id": "r", "time": {"expression": "t"}},
        )
