"""What a mistake with `headrace stream` and `headrace backfill` looks like: one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import cli
from headrace.events import event_schema
from headrace.log.stamp import EventWriter
from headrace.settings import PROJECT, load_line


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
    """Call `headrace` in an empty home; gives exit code, what was printed and the message."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed, told = capsys.readouterr()
        return int(ended.value.code or 0), printed, told

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["stream"], 2, ["--from"]),
        (
            ["stream", "--from", "s3://x"],
            3,
            ["'s3://x'", "files:s3://BUCKET/PREFIX or kafka://HOST:PORT/TOPIC"],
        ),
        (["stream", "--from", "files:none"], 3, ["none is not a folder", "make it"]),
        (["stream", "--from", "kafka://127.0.0.1:1/t"], 4, ["no broker answers", "start Kafka"]),
        (["stream", "--line", "x", "--from", "files:."], 2, ["'x' is not declared"]),
        (["backfill", "--from", "2026-01-01", "--out", "o"], 2, ["--to"]),
        (
            ["backfill", "--from", "yesterday", "--to", "2026-01-01", "--out", "o"],
            3,
            ["--from 'yesterday' is not a time"],
        ),
        (
            ["backfill", "--from", "2026-01-02", "--to", "2026-01-01T23:00:00Z", "--out", "o"],
            3,
            ["20260102T000000Z", "20260101T230000Z", "later --to"],
        ),
        (
            ["backfill", "--from", "2026-01-01", "--to", "2026-01-02", "--engine", "flink"],
            2,
            ["flink", "local", "spark"],
        ),
    ],
)
def test_a_mistake_is_told_with_its_remedy(verb, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    ended, _, told = verb(*arguments)
    assert ended == code
    assert [word for word in words if word not in told] == []
    assert told.count("\n") == 1
    assert list(tmp_path.rglob("*.*")) == []


def test_a_backfill_writes_its_interval(verb, tmp_path: Path) -> None:
    spec = load_line(PROJECT / "lines" / "coupons.yaml")
    at = 1_767_225_600_000_000  # 2026-01-01
    schema = event_schema(spec)
    blank = dict.fromkeys(schema.names)
    shown = [
        blank | {"event": "impression", "impression_id": f"i{n}", "event_at": at, "value": 0,
                 "arrival_at": 0, "item_id": "c1"}
        for n in range(3)
    ]  # fmt: skip
    folder = tmp_path / "home" / "lines" / spec.line / "log" / "events"
    for row, offset_us in zip(shown, (-1, 0, 86_400_000_000 - 1), strict=True):
        writer = EventWriter(folder, spec, lambda now=at + offset_us: now)
        row["event_at"] = at + offset_us
        writer.append(pa.Table.from_pylist([row], schema=schema))
        writer.close()
    out = tmp_path / "out"
    interval = ["--from", "2026-01-01", "--to", "2026-01-01T23:00:00-01:00"]
    ended, printed, _ = verb("backfill", *interval, "--out", str(out))
    parts = out / "20260101T000000Z-20260102T000000Z"
    assert (ended, printed) == (0, f"{parts}: 2 impressions\n")
    rows = pq.read_table(parts).to_pylist()
    assert [row["impression_id"] for row in rows] == ["i1", "i2"]
    assert [row["item_impressions_count_1m"] for row in rows] == [1, 0]
