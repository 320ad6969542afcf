"""A full training over a history in pieces: the bytes of one over the whole, and its leftovers."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from headrace import passes, past, train
from headrace.atomic import write_arrow
from headrace.labels.revisions import thin_negatives
from headrace.line.fingerprint import fingerprint
from headrace.model import Model
from headrace.model.delta import same_bits
from headrace.passes import Point
from headrace.past import Rows
from headrace.sample import Quarantine, count_samples, head_tick, read_samples, sample_parts
from headrace.store import Store
from tests.contract.written_line import LINE, ROWS, Line, correct_five, opened


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Twelve ticks with late labels, one of them in quarantine; a third of the negatives counts."""
    root = tmp_path_factory.mktemp("past")
    (root / "lines").mkdir()
    declared = LINE.replace(
        "provisional_after: 10s}", "provisional_after: 10s, negative_rate: 0.4}"
    )
    (root / "lines" / "tiny.yaml").write_text(declared, encoding="utf-8")
    line = opened(root)
    Store(line.settings).apply()
    line.tick(6)
    correct_five(line, 1)
    line.tick(3)
    correct_five(line, 5)
    line.tick(1)
    Quarantine(line.home).add(4, 5, ["test"])
    return line


def test_parts_are_the_samples_read_at_once(line: Line) -> None:
    head = head_tick(line.home)
    whole = read_samples(line.spec, line.home, 1, head, exclude=[(4, 5)])
    parts = sample_parts(line.spec, line.home, 1, head, [(4, 5)])
    assert pa.concat_tables(parts).equals(whole)
    assert count_samples(line.home, 1, head, [(4, 5)]) == whole.num_rows == 8 * ROWS + 10
    names = ("revision", "impression_id")
    some = sample_parts(line.spec, line.home, 1, head, [(4, 5)], columns=names)
    assert pa.concat_tables(some).equals(whole.select(names))


@pytest.mark.parametrize("chunk_rows", [90, 10_000])
def test_a_version_has_the_same_bytes_whatever_the_chunks(
    line: Line, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    monkeypatch.setattr(past, "BLOCK_ROWS", 128)
    head, told = head_tick(line.home), []
    version = train.full(
        line.settings,
        line.spec,
        head,
        chunk_rows=chunk_rows,
        advance=lambda *step: told.append(step),
    )
    whole = read_samples(line.spec, line.home, 0, head, exclude=[(4, 5)], latest=True)
    model = Model(line.spec.model, line.spec.seed)
    for _ in range(2):
        model.learn(thin_negatives(line.spec, whole))
    published = line.store.get(version)
    assert published.fingerprint == f"{fingerprint(model.state()):016x}"
    assert published.rows == whole.num_rows
    assert published.metrics["label_rate"] == pytest.approx(whole["label"].to_numpy().mean())
    assert told[-1][0] == told[-1][1] and told[-1][2] == "epoch 2"
    assert list((line.home / "training").iterdir()) == []


def test_what_a_killed_training_left_is_removed_and_what_runs_is_kept(line: Line) -> None:
    left = line.home / "training" / "full-left"
    left.mkdir(parents=True)
    with past.workspace(line.settings, line.spec) as first:
        assert not left.exists()
        with past.workspace(line.settings, line.spec):
            assert first.exists()
    assert not first.exists()


def test_a_training_goes_on_from_any_point_in_the_same_bytes(line: Line, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    samples = read_samples(line.spec, line.home, 0, 4)
    for place in range(3):
        block = samples.slice(place * 64, 64)
        write_arrow(folder / f"{place:08d}.arrow", block)
    rows = Rows(folder)
    assert rows.blocks == 3
    undisturbed = Model(line.spec.model, 1)
    points: list[Point] = []

    def keep(point: Point) -> None:
        points.append(point)
        passes.save(tmp_path / f"{len(points)}", point, undisturbed.state())

    ended = passes.learn(undisturbed, rows, 2, after=keep)
    assert (ended.epoch, ended.rows, len(points)) == (2, 192, 6)
    for place in (1, 3, 6):  # inside an epoch, between two, at the end
        found = passes.load(tmp_path / f"{place}")
        assert found is not None
        point, state = found
        assert point == points[place - 1]
        model = Model(line.spec.model, 1)
        model.load_state(state)
        assert passes.learn(model, rows, 2, point) == ended
        assert same_bits(model.state(), undisturbed.state())
