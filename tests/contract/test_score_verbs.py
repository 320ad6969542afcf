"""`headrace score-batch` and `score-log`: what they write, and what a mistake looks like."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from headrace import cli
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.events import event_schema, stamp
from headrace.launch import holds_events
from headrace.log.files import FileLog
from headrace.scoring import answers, nearline, pulse
from headrace.scoring.answers import Job, Scoring, scored_there
from headrace.serving.swap import Follower
from tests.contract.scored_line import AlikeLine
from tests.serving import until

Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlikeLine]:
    line = AlikeLine(tmp_path_factory.mktemp("verbs"))
    for number in range(3):
        line.traffic(number)
        line.tick()
    yield line


@pytest.fixture
def crowned(line: AlikeLine) -> AlikeLine:
    if line.lines.champion() is None:
        line.publish(1)
        line.publish(2)
        line.crown("v000001")
    return line


@pytest.fixture
def verb(
    line: AlikeLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Verb:
    """Call `headrace` in the line's home; gives exit code, what was printed and the message."""
    monkeypatch.setenv("HEADRACE_HOME", str(line.settings.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(line.settings.lines_dir))

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", name, "--line", "alike", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed, told = capsys.readouterr()
        return int(ended.value.code or 0), printed, told

    return call


def rows_file(path: Path, **columns: list[object]) -> str:
    given = {"user_id": ["ann", "bob"], "item": [1, 2], "price": [2.5, None]}
    pq.write_table(pa.table(given | columns), path)
    return str(path)


def test_without_a_champion_both_say_so(line: AlikeLine, verb: Verb, tmp_path: Path) -> None:
    """Runs first in its module."""
    given = ["--input", rows_file(tmp_path / "rows.parquet")]
    told = verb("score-batch", *given, "--output", str(tmp_path / "out.parquet"))
    assert (told[0], "has no champion; run full_train first" in told[2]) == (4, True)
    told = verb("score-log", "--once")
    assert (told[0], "no champion loaded yet" in told[2]) == (4, True)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_file_is_scored_by_the_version_that_was_asked_for(
    crowned: AlikeLine, verb: Verb, tmp_path: Path
) -> None:
    given, out = rows_file(tmp_path / "rows.parquet"), tmp_path / "below" / "out.parquet"
    ended, printed, _ = verb("score-batch", "--input", given, "--output", str(out))
    assert (ended, printed) == (0, f"{out}: 2 rows by v000001\n")
    champion = pq.read_table(out)
    ended, printed, _ = verb(
        "score-batch", "--input", given, "--output", str(out), "--version", "v000002", "--json"
    )
    told = json.loads(printed)
    assert ended == 0
    assert told == {
        "line": "alike",
        "version": "v000002",
        "watermark_us": 1_750_000_000_000_002,
        "output": str(out),
        "rows": 2,
        "refused": 0,
        "refusals": None,
    }
    second = pq.read_table(out)
    assert second["version"].to_pylist() == ["v000002"] * 2
    assert second["score"].to_pylist() != champion["score"].to_pylist()
    both = [a * b for a, b in zip(second["score"].to_pylist(),
            second["conversion_score"].to_pylist(), strict=True)]  # fmt: skip
    assert second["click_and_conversion_score"].to_pylist() == both


def test_refused_rows_are_kept_aside_with_their_reasons(
    crowned: AlikeLine, verb: Verb, tmp_path: Path
) -> None:
    path, out = tmp_path / "rows.csv", tmp_path / "out.parquet"
    table = pa.table({"user_id": ["a", "b", "c"], "item": ["1", "x", "3"], "price": ["1", "2", ""]})
    pacsv.write_csv(table, path)
    with path.open("a") as file:
        file.write("torn,line\n")
    ended, printed, _ = verb("score-batch", "--input", str(path), "--output", str(out))
    refusals = tmp_path / "out.parquet.refused.jsonl"
    assert ended == 0
    assert printed == f"{out}: 2 rows by v000001; 2 refused, see {refusals}\n"
    found = {one["row"]: one for one in map(json.loads, refusals.read_text().splitlines())}
    assert found[2] == {
        "row": 2,
        "reason": "item: 'x' is not a 64-bit integer",
        "raw": {"user_id": "b", "item": "x", "price": "2"},
    }
    assert found[None]["raw"] == "torn,line"
    assert "2 fields where the header has 3" in found[None]["reason"]
    assert pq.read_table(out)["user_id"].to_pylist() == ["a", "c"]
    ended, _, _ = verb(
        "score-batch", "--input", rows_file(tmp_path / "r.parquet"), "--output", str(out)
    )
    assert (ended, refusals.exists()) == (0, False)  # those of an earlier file are gone


def test_a_file_of_refused_rows_only_is_an_error_and_leaves_their_reasons(
    crowned: AlikeLine, verb: Verb, tmp_path: Path
) -> None:
    given = rows_file(tmp_path / "rows.parquet", price=[float("inf")] * 2)
    out = tmp_path / "out.parquet"
    ended, _, told = verb("score-batch", "--input", given, "--output", str(out))
    assert ended == 3
    assert "all 2 rows were refused, the first because of price: inf" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.parquet.refused.jsonl",
        "rows.parquet",
    ]


def test_an_empty_file_gives_an_empty_file(crowned: AlikeLine, verb: Verb, tmp_path: Path) -> None:
    columns = {"user_id": pa.string(), "item": pa.int32(), "price": pa.float32()}
    pq.write_table(pa.schema(columns).empty_table(), tmp_path / "rows.parquet")
    out = tmp_path / "out.parquet"
    given = ["--input", str(tmp_path / "rows.parquet"), "--output", str(out)]
    assert verb("score-batch", *given)[0] == 0
    found = pq.read_table(out)
    assert found.num_rows == 0
    assert found.column_names[3:5] == ["score", "conversion_score"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 3, "give either a file of rows, or an interval"),
        (["--input", "rows.parquet", "--from", "2026-01-01"], 3, "give both from and to"),
        (["--from", "2026-01-01"], 3, "give both from and to"),
        (
            ["--input", "rows.parquet", "--from", "2026-01-01", "--to", "2026-01-02"],
            3,
            "give either a file of rows, or an interval",
        ),
        (["--from", "2026-01-02", "--to", "2026-01-01"], 3, "give a later --to"),
        (["--from", "then", "--to", "2026-01-01"], 3, "from 'then' is not a time"),
        (
            ["--from", "2026-01-01", "--to", "2026-01-02", "--at-column", "x"],
            3,
            "an at-column goes with a file",
        ),
        (["--input", "none.parquet"], 3, "none.parquet: no such file"),
        (["--input", "./out.parquet"], 3, "is the file of the rows; give the scores another"),
        (["--input", "rows.parquet", "--version", "v9"], 3, "'v9'"),
        (["--input", "rows.parquet", "--at-column", "when"], 3, "no column 'when'"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(
    crowned: AlikeLine, verb: Verb, tmp_path: Path, monkeypatch, arguments, code, words
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "rows.parquet")
    ended, _, told = verb("score-batch", "--output", "out.parquet", *arguments)
    assert "say where the scores" in verb("score-batch", "--input", "rows.parquet")[2]
    assert (ended, words in told, told.count("\n")) == (code, True, 1), told
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_spark_history_cannot_be_asked_from_spark(
    crowned: AlikeLine, verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_OFFLINE_STORE", "spark")
    given = ["--input", rows_file(tmp_path / "rows.parquet"), "--output", str(tmp_path / "o")]
    ended, _, told = verb("score-batch", *given, "--spark")
    assert (ended, "leave out --spark" in told) == (4, True)


def test_an_interval_waits_for_its_ticks(crowned: AlikeLine, verb: Verb) -> None:
    crowned.traffic(7)
    given = ["--from", "1970-01-02", "--to", "2100-01-01"]
    ended, _, told = verb("score-batch", *given)
    assert (ended, "let `headrace ingest` catch up" in told) == (4, True)
    crowned.tick()
    ended, printed, _ = verb("score-batch", *given)
    out = crowned.home / "scores" / "batch" / "19700102T000000Z-21000101T000000Z.parquet"
    assert (ended, printed) == (0, f"{out}: {4 * 12} rows by v000001\n")
    assert pq.read_metadata(out).num_rows == 4 * 12


def test_a_worker_loads_a_version_once(crowned: AlikeLine) -> None:
    answers._scoring.cache_clear()
    rows = pa.table({"user_id": ["ann"], "item": [1], "price": [1.5]})
    job = Job(crowned.settings, crowned.spec, "v000001", None, 1_750_000_000_000_000)
    first, second = (scored_there(job, rows) for _ in range(2))
    assert answers._scoring.cache_info().misses == 1
    assert first.equals(second)
    assert first.equals(Scoring(job).scored(rows))


def test_once_scores_what_is_there(crowned: AlikeLine, verb: Verb) -> None:
    ended, printed, _ = verb("score-log", "--of", "served", "--once")
    folder = nearline.scores_folder(crowned.home, "served")
    assert (ended, printed) == (0, f"{folder}: 0 rows\n")


def test_the_log_is_followed_and_so_is_the_champion(crowned: AlikeLine) -> None:
    folder, stop = nearline.scores_folder(crowned.home, "impressions"), threading.Event()
    thread = threading.Thread(
        target=nearline.run,
        args=(crowned.settings, crowned.spec, stop, "impressions"),
        kwargs={"every_s": 0.05},
    )
    thread.start()
    try:
        until(lambda: bool(nearline.parts(folder)))
        first = nearline.parts(folder)
        with pytest.raises(EnvironmentFault, match="another process already writes"):
            models = Follower(crowned.spec, crowned.lines)
            nearline.Nearline(crowned.settings, crowned.spec, "impressions", models)
        crowned.crown("v000002")

        def swapped() -> bool:
            crowned.traffic(100 + len(nearline.parts(folder)), count=3)
            crowned.tick()
            *others, newest = nearline.parts(folder)
            last = pq.read_table(newest.path)["version"][-1].as_py()
            return len(others) > 1 and last == "v000002"

        until(swapped)
    finally:
        stop.set()
        thread.join()
        crowned.crown("v000001")
    parts = nearline.parts(folder)
    assert parts[: len(first)] == first
    found = pa.concat_tables([pq.read_table(part.path) for part in parts])
    offsets = found["offset"].to_pylist()
    assert offsets == sorted(set(offsets))
    beyond = 10**9
    parts[-1].path.rename(folder / f"{parts[-1].start:020d}-{beyond:020d}.parquet")
    models = Follower(crowned.spec, crowned.lines)
    with pytest.raises(IntegrityError, match="the log ends before, at offset"):
        nearline.Nearline(crowned.settings, crowned.spec, "impressions", models)
    parts[1].path.unlink()
    with pytest.raises(IntegrityError, match="restore what is missing"):
        nearline.parts(folder)


def test_old_parts_go_and_the_newest_says_where_to_go_on(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    line.crown(line.publish(1))
    for number in range(4):
        line.traffic(number)
        line.tick()
    folder = nearline.scores_folder(line.home, "impressions")
    follow = partial(nearline.run, line.settings, line.spec, threading.Event(), "impressions")
    assert follow(once=True, most=16, keep_us=3_600_000_000) == 4 * 12
    written = nearline.parts(folder)
    assert len(written) == 4
    for part in (written[0], written[1], written[3]):
        os.utime(part.path, (0, 0))
    assert follow(once=True, keep_us=3_600_000_000) == 0
    assert nearline.parts(folder) == written[2:]  # none goes before an older one
    os.utime(written[2].path, (0, 0))
    assert follow(once=True, keep_us=3_600_000_000) == 0
    assert nearline.parts(folder) == written[3:]
    line.traffic(9)
    line.tick()
    assert follow(once=True, keep_us=3_600_000_000) == 12
    assert [part.start for part in nearline.parts(folder)] == [written[3].stop]


def test_a_follower_says_how_it_stands(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    line.traffic(1)
    line.tick()
    stop, told = threading.Event(), pulse.beat(line.home, "impressions")
    thread = threading.Thread(
        target=nearline.run,
        args=(line.settings, line.spec, stop, "impressions"),
        kwargs={"every_s": 0.05},
    )
    thread.start()

    def says(key: str, value: object) -> bool:
        return told.is_file() and json.loads(told.read_text())[key] == value

    try:
        until(lambda: says("rows", 0))
        assert "no champion loaded yet" in json.loads(told.read_text())["problem"]
        assert 'failing{line="alike",log="impressions"} 1.0' in metrics(told)
        line.crown(line.publish(1))
        until(lambda: says("rows", 12))
    finally:
        stop.set()
        thread.join()
    standing = json.loads(told.read_text())
    assert (standing["problem"], standing["version"]) == (None, "v000001")
    assert (standing["behind"], standing["offset"]) == (0, 16)
    shown = metrics(told)
    assert 'failing{line="alike",log="impressions"} 0.0' in shown
    assert 'headrace_nearline_rows{line="alike",log="impressions"} 12.0' in shown


def metrics(told: Path) -> str:
    return told.with_suffix(".prom").read_text()


def test_an_interval_without_events_is_told_before_anything_is_started(line: AlikeLine) -> None:
    log = FileLog(line.settings.line_home("alike") / "log" / "events", event_schema(line.spec))
    stamps = log.read(0, log.head)["arrival_at"].cast(pa.int64()).to_pylist()
    first, after, later = (stamp(at) for at in (stamps[0], stamps[-1] + 1, stamps[-1] + 9))
    assert holds_events(line.settings, "alike", first, after)
    assert not holds_events(line.settings, "alike", after, later)
    on_a_cluster = replace(line.settings, kfp_endpoint="http://kfp")
    assert holds_events(on_a_cluster, "alike", after, later)
