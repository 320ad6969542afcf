"""Online, nearline and offline: the same rows get the same scores, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from headrace.bits import bits
from headrace.events import TIME, task_scores
from headrace.scoring import batch, nearline
from headrace.scoring.files import InputFile
from headrace.scoring.impressions import AT, Interval
from tests.contract.scored_line import AlikeLine, Server, asked

SCORES = ("score", "conversion_score", "click_and_conversion_score")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AlikeLine, pa.Table]]:
    """Six ticks with requests between them; the fourth tick comes online after a request.

    Of the impressions that were served some are in the log at their moments, with a last tick.
    """
    line = AlikeLine(tmp_path_factory.mktemp("alike"))
    line.crown(line.publish(1))
    draw, count = np.random.default_rng(5), 0
    with Server(line) as server:
        for tick in range(6):
            line.traffic(tick)
            late = line.tick(push=tick != 3)
            for way in (server.http, server.rest, server.rpc):
                rows = [asked(draw) for _ in range(7)]
                if way == server.rpc:
                    rows = [
                        {"user_id": row["user_id"] or "bob", "item": row["item"] or 3}
                        | {"price": row["price"] or 2.5}
                        for row in rows
                    ]
                told = way(f"{tick}:{way.__name__}", rows)
                count += len(rows)
                served = server.logged(count).slice(count - 7)
                assert served["click_and_conversion_score"].to_pylist() == told
            if tick == 3:
                line.push(late)
        served = server.logged(count)
    shown = served.select(["impression_id", "request_id", *line.spec.columns])
    moments = served["served_at"].cast(pa.int64()).to_pylist()
    rows = zip(shown.to_pylist(), moments, strict=True)
    line.append([row | {"event_at": at, "value": 0} for row, at in rows])
    line.tick()
    yield line, served


def same(found: pa.Table, served: pa.Table) -> None:
    """All scores, the version and the order."""
    assert set(task_scores_of(found)) == set(SCORES)
    for name in SCORES:
        np.testing.assert_array_equal(bits(found[name]), bits(served[name]))
    assert found["version"].to_pylist() == served["version"].to_pylist()


def task_scores_of(found: pa.Table) -> list[str]:
    return [name for name in found.column_names if name.endswith("score")]


def promptly(served: pa.Table) -> pa.Array:
    """Rows whose requests came while every committed tick was online."""
    return pa.array([not name.startswith("3:") for name in served["request_id"].to_pylist()])


def asked_rows(line: AlikeLine, served: pa.Table, *more: str) -> pa.Table:
    return served.select(["impression_id", "served_at", *line.spec.columns, *more])


def test_the_rows_test_what_they_should(lived) -> None:
    line, served = lived
    assert task_scores(line.spec) == SCORES[1:]
    assert len(set(served["score"].to_pylist())) > 100
    assert any(value is None for value in served["item"].to_pylist())
    assert served["alike_by_item__at"].null_count < served.num_rows


@pytest.mark.parametrize("form", ["parquet", "csv", "arrow"])
@pytest.mark.parametrize("chunk_rows", [5, 10_000])
def test_a_file_gets_at_the_served_moments_what_the_server_said(
    lived, tmp_path: Path, form: str, chunk_rows: int
) -> None:
    line, served = lived
    rows = asked_rows(line, served.filter(promptly(served)))
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(rows, path)
    elif form == "csv":
        micros = rows["served_at"].cast(pa.int64())
        pacsv.write_csv(rows.set_column(1, "served_at", micros), path)
    else:
        with pa.ipc.new_file(path, rows.schema) as file:
            file.write_table(rows)
    with InputFile(path) as source:
        told = batch.score(
            line.settings, line.spec, source, tmp_path / "scores.parquet",
            at_column="served_at", chunk_rows=chunk_rows,
        )  # fmt: skip
    assert (told.rows, told.refused, told.version) == (rows.num_rows, 0, "v000001")
    found = pq.read_table(told.output)
    same(found, served.filter(promptly(served)))
    names = [*SCORES, "version", "watermark"]
    assert found.column_names == [*rows.column_names, *names]
    assert found.select(rows.column_names).equals(rows.cast(found.select(rows.column_names).schema))
    assert found["watermark"].cast(pa.int64())[0].as_py() == told.watermark_us


def test_rows_that_say_what_was_read_are_alike_also_while_a_tick_was_late(
    lived, tmp_path: Path
) -> None:
    line, served = lived
    read_at = [f"{view}__at" for view in line.spec.views]
    for name, rows in (
        ("said", asked_rows(line, served, *read_at)),
        ("unsaid", asked_rows(line, served)),
    ):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        with InputFile(tmp_path / f"{name}.parquet") as source:
            out = tmp_path / f"{name}.scores.parquet"
            batch.score(line.settings, line.spec, source, out, at_column="served_at")
    same(pq.read_table(tmp_path / "said.scores.parquet"), served)
    unsaid = pq.read_table(tmp_path / "unsaid.scores.parquet")
    differ = bits(unsaid["score"]) != bits(served["score"])
    late = ~np.array(promptly(served).to_pylist())
    assert differ.any()
    assert not (differ & ~late).any()


def test_an_interval_of_the_log_gets_what_the_server_said(lived, tmp_path: Path) -> None:
    line, served = lived
    source = Interval(line.spec, line.home, (1, 2**61))
    told = batch.score(
        line.settings, line.spec, source, tmp_path / "log.parquet", at_column=AT
    )  # fmt: skip
    found = pq.read_table(told.output).slice(told.rows - served.num_rows)
    assert found["impression_id"].to_pylist() == served["impression_id"].to_pylist()
    kept = promptly(served)
    same(found.filter(kept), served.filter(kept))


@pytest.mark.parametrize("which", ["served", "impressions"])
def test_nearline_writes_what_the_server_said(lived, which: nearline.Of) -> None:
    line, served = lived
    nearline.run(line.settings, line.spec, threading.Event(), which, once=True)
    parts = nearline.parts(nearline.scores_folder(line.home, which))
    found = pa.concat_tables([pq.read_table(part.path) for part in parts])
    assert parts[0].start == 0
    found = found.slice(found.num_rows - served.num_rows)
    kept = pa.array([True] * served.num_rows) if which == "served" else promptly(served)
    same(found.filter(kept), served.filter(kept))
    assert found["impression_id"].to_pylist() == served["impression_id"].to_pylist()
    assert found[AT].to_pylist() == served["served_at"].to_pylist()


def test_rows_without_a_moment_are_asked_now_as_a_request_is(
    lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, _ = lived
    draw = np.random.default_rng(9)
    rows = [asked(draw) for _ in range(40)]
    with Server(line) as server:
        before = line.served().num_rows
        server.http("now", rows)
        served = server.logged(before + 40).slice(before)
    moment = served["served_at"].cast(pa.int64())[0].as_py()
    monkeypatch.setattr(batch, "clock_us", lambda: moment)
    pq.write_table(served.select(list(line.spec.columns)), tmp_path / "rows.parquet")
    with InputFile(tmp_path / "rows.parquet") as source:
        told = batch.score(line.settings, line.spec, source, tmp_path / "now.parquet")
    same(pq.read_table(told.output), served)
    assert served.schema.field("served_at").type == TIME
