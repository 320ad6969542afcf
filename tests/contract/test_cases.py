"""The case book: the worst answers go out as a sheet, and come back as rows that are learned."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import cli, past, train
from headrace.cases import CaseBook
from headrace.errors import ConflictError, InputError
from headrace.events import sample_schema
from headrace.labels import state
from headrace.line.fingerprint import fingerprint
from headrace.mixing import mixed
from headrace.model import Model
from headrace.sample import Quarantine, head_tick, read_samples, read_tick
from headrace.store import Store
from tests.contract import served_line
from tests.contract import written_line as written
from tests.contract.served_line import ServedLine

BASE, SERVED = 30, 12  # ticks: bootstrapped, and answered by v000001
MOST = 4

Cases = Callable[..., Any]
Row = dict[str, str]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root, start_us = tmp_path_factory.mktemp("cases"), written.START_US
    served_line.CHANGES["model: {min_rows: 100,"] = "model: {slices: [item], min_rows: 100,"
    try:
        served_line.begin(root, BASE)
    finally:
        del served_line.CHANGES["model: {min_rows: 100,"]
    line = served_line.opened(root)
    Store(line.settings).apply()
    line.tick(SERVED, version="v000001")
    yield root
    written.START_US = start_us


@pytest.fixture
def line(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServedLine:
    monkeypatch.setattr(state, "GRACE_US", 0)
    line = served_line.copied(origin, tmp_path)
    monkeypatch.setenv("HEADRACE_HOME", str(line.settings.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(line.settings.lines_dir))
    return line


@pytest.fixture
def cases(line: ServedLine, capsys: pytest.CaptureFixture[str]) -> Cases:
    """`headrace cases` on the line; what it printed as JSON."""

    def call(*words: str) -> Any:
        cli.app(["cases", *words, "--line", "tiny", "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def interval(line: ServedLine) -> list[str]:
    start, end = read_tick(line.home, BASE - 1).at_us, read_tick(line.home, BASE + SERVED - 1).at_us
    moments = [f"{np.datetime64(at_us, 'us')}" for at_us in (start, end + 1)]
    sheet = str(line.home / "cases.csv")
    return ["--from", moments[0], "--to", moments[1], "--most", str(MOST), "--output", sheet]


def rows_of(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def settle(line: ServedLine) -> None:
    """So many ticks that nothing corrects the served rows any more."""
    line.tick(3)


def turned(cases: Cases, line: ServedLine, interval: list[str], count: int = 4) -> list[Row]:
    """Export, turn the labels of the first `count` rows around, import; the rows turned."""
    settle(line)
    cases("export", *interval)
    rows = rows_of(line.home / "cases.csv")
    for row in rows[:count]:
        row["corrected_label"] = str(1 - int(row["label"]))
    write(line.home / "cases.csv", rows)
    taken = cases("import", str(line.home / "cases.csv"))
    assert (taken["changed"], taken["confirmed"], taken["refused"]) == (count, 0, 0)
    return rows[:count]


def test_the_worst_rows_are_those_that_a_look_at_all_rows_finds(
    cases: Cases, line: ServedLine, interval: list[str]
) -> None:
    told = cases("export", *interval)
    samples = read_samples(line.spec, line.home, BASE, BASE + SERVED).to_pylist()
    for row in samples:
        row["loss"] = -np.log(row["score"] if row["label"] else 1 - row["score"])
    for name in ("all", "item_id i1", "item_id i7"):
        own = [row for row in samples if name in ("all", f"item_id {row['item_id']}")]
        expected = {
            row["impression_id"]
            for label in (0, 1)
            for row in sorted(
                (row for row in own if row["label"] == label), key=lambda row: -row["loss"]
            )[:MOST]
        }
        found = {case["impression_id"] for case in told if name in case["slice"].split("; ")}
        assert found == expected
    losses = [case["logloss"] for case in told]
    assert losses == sorted(losses, reverse=True)
    assert len({case["impression_id"] for case in told}) == len(told) <= 2 * MOST * 11
    by_id = {row["impression_id"]: row for row in samples}
    first = told[0]
    row = by_id[first["impression_id"]]
    assert first["logloss"] == pytest.approx(row["loss"], abs=1e-6)
    assert first["residual"] == pytest.approx(row["label"] - row["score"], abs=1e-6)
    assert (first["version"], first["user_id"]) == ("v000001", row["user_id"])


def test_an_export_is_bounded_and_the_same_again(
    cases: Cases, line: ServedLine, interval: list[str]
) -> None:
    cases("export", *interval)
    before = (line.home / "cases.csv").read_bytes()
    cases("export", *interval[:-2])
    (again,) = (line.home / "cases").glob("*T*Z-*T*Z.csv")
    assert again.read_bytes() == before
    assert CaseBook(line.spec, line.home).batches() == []
    rows = rows_of(line.home / "cases.csv")
    assert {row["corrected_label"] for row in rows} == {""}
    assert {row["line"] for row in rows} == {"tiny"}


def test_corrected_rows_are_learned_once_with_the_tick_they_belong_to(
    cases: Cases, line: ServedLine, interval: list[str]
) -> None:
    rows = turned(cases, line, interval)
    head = head_tick(line.home)
    (batch,) = cases("list")
    assert batch == {**batch, "tick": head + 1, "corrected": 4, "weight": 10.0, "learned": False}
    before = train.window_samples(line.settings, line.spec, BASE, head)
    assert train.lesson_of(line.settings, line.spec, before).cases == 0
    line.tick(3)
    window = train.window_samples(line.settings, line.spec, BASE, head + 3)
    lesson = train.lesson_of(line.settings, line.spec, window)
    assert (lesson.cases, lesson.case_weight) == (4, 40)
    assert lesson.rows.num_rows == window.samples.num_rows + 4
    ids = [row["impression_id"] for row in rows]
    own = [row for row in lesson.rows.to_pylist() if row["revision"] == 1]
    assert sorted(row["impression_id"] for row in own) == sorted(ids)
    for row in own:
        weights = (row["positive_weight"], row["negative_weight"])
        assert weights == ((10, -1) if row["label"] else (-1, 10))
    after = train.window_samples(line.settings, line.spec, head + 2, head + 3)
    assert train.lesson_of(line.settings, line.spec, after).cases == 0
    versions = [train.incremental(line.settings, line.spec, BASE, head + 3) for _ in range(2)]
    first, second = (line.store.get(version) for version in versions)
    assert first.metrics["cases"] == 4
    assert first.fingerprint == second.fingerprint
    line.crown(versions[0])
    assert [each["learned"] for each in cases("list")] == [True]


def test_a_full_training_learns_the_corrected_label_in_place_of_the_old_one(
    cases: Cases, line: ServedLine, interval: list[str]
) -> None:
    rows = turned(cases, line, interval)
    line.tick(3)
    head = head_tick(line.home)
    version = line.store.get(train.full(line.settings, line.spec, head))
    assert version.metrics["cases"] == 4
    corrected = {row["impression_id"]: int(row["corrected_label"]) for row in rows}
    samples = read_samples(line.spec, line.home, 0, head).to_pylist()
    for row in samples:
        label = corrected.get(row["impression_id"], row["label"])
        weight = 10.0 if row["impression_id"] in corrected else 1.0
        row |= {"positive_weight": weight * label, "negative_weight": weight * (1 - label)}
    expected = Model(line.spec.model, line.spec.seed)
    for _ in range(line.spec.model.epochs):
        expected.learn(pa.Table.from_pylist(samples, schema=sample_schema(line.spec)))
    assert version.fingerprint == f"{fingerprint(expected.state()):016x}"
    plain = past.prepare(line.settings, line.spec, head - 2, [], line.home / "rows")[1]
    assert plain.cases == 0  # the batch belongs to a later tick


def test_a_quarantine_of_the_tick_or_of_the_row_holds_the_correction_back(
    cases: Cases, line: ServedLine, interval: list[str]
) -> None:
    rows = turned(cases, line, interval)
    head = head_tick(line.home)
    line.tick(3)

    def learned() -> int:
        window = train.window_samples(line.settings, line.spec, BASE, head + 3)
        return train.lesson_of(line.settings, line.spec, window).cases

    Quarantine(line.home).add(head + 1, head + 2, ["test"])
    assert learned() == 0
    Quarantine(line.home).release(head + 1, head + 2)
    assert learned() == 4
    tick = int(rows[0]["impression_id"].split(":")[0])
    Quarantine(line.home).add(tick, tick + 1, ["test"])
    same = sum(row["impression_id"].startswith(f"{tick}:") for row in rows)
    assert learned() == 4 - same < 4


def test_a_corrected_row_is_not_replayed_with_its_old_label(
    cases: Cases, line: ServedLine, interval: list[str]
) -> None:
    rows = turned(cases, line, interval, count=20)
    line.tick(4)
    model = line.spec.model.model_copy(update={"replay_share": 0.9})
    spec = line.spec.model_copy(update={"model": model})
    head = head_tick(line.home)
    window = read_samples(spec, line.home, head - 4, head)
    mixture = mixed(spec, line.home, head - 4, head, window)
    old = set(mixture["impression_id"].to_pylist()) - set(window["impression_id"].to_pylist())
    assert len(old) > 600
    assert not old & {row["impression_id"] for row in rows}


def test_wrong_rows_are_kept_aside_with_reasons_and_the_others_taken(
    cases: Cases, line: ServedLine, interval: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settle(line)
    cases("export", *interval)
    path = line.home / "cases.csv"
    rows = rows_of(path)
    for row in rows[:6]:
        row["corrected_label"] = str(1 - int(row["label"]))
    rows[0]["impression_id"] = "nobody:0"
    rows[1]["label"], rows[1]["corrected_label"] = rows[1]["corrected_label"], rows[1]["label"]
    rows[2]["line"] = "other"
    rows[3]["corrected_label"] = "maybe"
    rows[4]["corrected_label"] = rows[4]["label"]  # confirmed
    write(path, rows)
    with pytest.raises(InputError, match=r"4 rows of .* of the others 1 corrected, 1 confirmed"):
        cases("import", str(path))
    taken = json.loads(capsys.readouterr().out)
    assert (taken["changed"], taken["confirmed"], taken["refused"]) == (1, 1, 4)
    aside = rows_of(Path(taken["refusals"]))
    said = [row.pop("reason") for row in aside]
    assert [row["impression_id"] for row in aside] == [row["impression_id"] for row in rows[:4]]
    for reason, expected in zip(
        said,
        ("has no sample", "by now, not", "is not 'tiny'", "neither 0 nor 1"),
        strict=True,
    ):
        assert expected in reason
    aside[3]["corrected_label"] = str(1 - int(aside[3]["label"]))
    write(Path(taken["refusals"]), aside[3:])
    assert cases("import", taken["refusals"])["changed"] == 1
    assert len(CaseBook(line.spec, line.home).batches()) == 2


def test_what_was_judged_is_neither_exported_nor_taken_again(
    cases: Cases, line: ServedLine, interval: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = turned(cases, line, interval)
    told = {case["impression_id"] for case in cases("export", *interval)}
    assert told and not told & {row["impression_id"] for row in rows}
    write(line.home / "again.csv", rows)
    with pytest.raises(InputError, match="was judged before"):
        cases("import", str(line.home / "again.csv"))
    assert json.loads(capsys.readouterr().out)["batch"] is None
    assert len(CaseBook(line.spec, line.home).batches()) == 1


def test_a_label_that_may_still_change_by_itself_is_not_corrected(
    cases: Cases, line: ServedLine, interval: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cases("export", *interval)
    path = line.home / "cases.csv"
    rows = rows_of(path)
    for row in rows:
        row["corrected_label"] = str(1 - int(row["label"]))
    write(path, rows)
    with pytest.raises(InputError, match=r"may still change by itself for 0\.0 min"):
        cases("import", str(path))
    last = {BASE + SERVED - 1, BASE + SERVED - 2}
    young = [row for row in rows if int(row["impression_id"].split(":")[0]) in last]
    taken = json.loads(capsys.readouterr().out)
    assert (taken["changed"], taken["refused"]) == (len(rows) - len(young), len(young))


def test_a_weight_out_of_bounds_and_a_tick_that_came_meanwhile_take_nothing(
    cases: Cases, line: ServedLine, interval: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(line)
    cases("export", *interval)
    path = line.home / "cases.csv"
    rows = rows_of(path)
    rows[0]["corrected_label"] = str(1 - int(rows[0]["label"]))
    write(path, rows)
    with pytest.raises(InputError, match="--weight 1000 is not between 1 and 100"):
        cases("import", str(path), "--weight", "1000")
    heads = iter([5, 7])
    monkeypatch.setattr("headrace.cases.book.head_tick", lambda home: next(heads))
    with pytest.raises(ConflictError, match="tick 6 was committed meanwhile; import again"):
        cases("import", str(path))
    assert CaseBook(line.spec, line.home).batches() == []
