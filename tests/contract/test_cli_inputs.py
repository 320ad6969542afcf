"""Declarations and data that do not fit: one clear line, its exit code, nothing written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.command_line import Place, changed


@pytest.mark.parametrize("verb", ["lines", "replay", "up"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("modle", {}, ["toy.yaml", "modle", "unknown key", "remove it or correct its spelling"]),
        ("source.impressions.pth", "x", ["impressions.pth", "unknown key"]),
        ("windows.0.window", 3, ["windows.0.window", "3", "a unit", "10m"]),
        ("label.attribution_window", "90", ["label.attribution_window", "'90'", "a unit"]),
        ("source.impressions.columns.item", "hit", ["columns.item", "'hit'", "take it out"]),
        ("windows.0.key", ["itme"], ["windows.n", "'itme'", "declared string or int column"]),
        ("timezone", "Mars/Base", ["timezone", "'Mars/Base'", "Europe/Berlin"]),
    ],
    ids=["key", "inner key", "window", "attribution", "label", "column", "timezone"],
)
def test_a_wrong_declaration_is_named(
    place: Place, verb: str, key: str, value: Any, words: list[str]
) -> None:
    place.declare(changed(key, value))
    arguments = {"lines": ("lines",), "replay": place.replay(), "up": ("up", "--line", "toy")}
    place.refuses(2, words, *arguments[verb])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"line: caf\xe9\n", ["UTF-8", "byte 9 is 0xe9", "save it as UTF-8"]),
        (b"line: toy\n  columns: {\n", ["line 2", "not readable as YAML", "correct it"]),
        (b"", ["a mapping", "line: <name>"]),
        (b"line: \x00\n", ["not readable as YAML"]),
    ],
    ids=["latin-1", "syntax", "empty", "zero byte"],
)
def test_a_file_that_is_no_yaml_is_named(place: Place, raw: bytes, words: list[str]) -> None:
    place.yaml.write_bytes(raw)
    place.refuses(2, ["toy.yaml", *words], "lines")
    place.refuses(2, ["toy.yaml", *words], *place.replay())


def test_a_line_that_is_a_folder_or_absent_is_named(place: Place) -> None:
    words = [str(place.lines), "is a folder", "toy.yaml"]
    place.refuses(2, words, "replay", "--line", place.lines, "--data", place.data)
    gone = place.lines / "gone.yaml"
    words = [str(gone), "no such line file", "there are: toy.yaml"]
    place.refuses(2, words, "replay", "--line", gone, "--data", place.data)
    place.refuses(2, ["'candles'", "known: toy"], "up", "--line", "candles")


# what does not fit in the data


def test_a_missing_data_folder_is_named(place: Place) -> None:
    gone = place.root / "nowhere"
    words = [str(gone), "no such data folder", "--data"]
    place.refuses(3, words, "replay", "--line", place.yaml, "--data", gone, "--json", place.result)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["toy.csv", "no such file", "there is: nothing"]),
        ("", ["toy.csv", "the file is empty", "a row for each event"]),
        ("id,at,item,hit\n", ["toy.csv", "no rows", "a row for each event"]),
        (
            "id,at,hit\na,2024-01-01,1\n",
            ["columns.item", "'item'", "which the file lacks", "hit (BIGINT)"],
        ),
        # DuckDB alone would read `at` as a keyword and `user` as the name of its session
        ("id,item,hit\na,x,1\n", ["impressions.time", "'at'", "which the file lacks"]),
        ("id,at,item,hit\na,soon,x,1\n", ["1 of 1 rows", "'soon'", "correct"]),
    ],
    ids=["absent", "empty", "header only", "column", "time", "clock"],
)
def test_a_file_that_does_not_fit_is_named(
    place: Place, text: str | None, words: list[str]
) -> None:
    if text is not None:
        (place.data / "toy.csv").write_text(text, encoding="utf-8")
    place.refuses(3, words, *place.replay())
    assert not place.result.parent.exists()


def test_a_torn_gzip_is_named(place: Place) -> None:
    place.declare(changed("source.impressions.path", "toy.parquet.gz"))
    (place.data / "toy.parquet.gz").write_bytes(b"\x1f\x8b\x08\x00torn")
    place.refuses(3, ["toy.parquet.gz", "not readable as parquet"], *place.replay())


@pytest.mark.slow
def test_unsorted_and_repeated_rows_are_counted_and_no_error(place: Place) -> None:
    rows = place.rows()
    place.save([*reversed(rows), *rows[:5], {**rows[0], "id": "x", "at": "soon"}])
    ended = place.headrace(*place.replay())
    assert (ended.code, ended.err) == (0, "")
    assert "86 rows: 5 duplicates, 84 unsorted, 1 malformed, 0 unmatched" in ended.out
    assert "'soon' is not a time" in ended.out
    counts = json.loads(place.result.read_text(encoding="utf-8"))["counts"]
    assert (counts["duplicates"], counts["unsorted"], counts["unaccounted"]) == (5, 84, 0)
    assert [path.name for path in place.result.parent.iterdir()] == ["toy.json"]
