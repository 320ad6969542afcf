"""Rows that were corrected: what is learned, taken back and judged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from headrace import evaluate, train
from headrace.sample import Quarantine, read_samples
from tests.contract.written_line import LINE, ROWS, Line, correct_five, opened


@pytest.mark.slow
@pytest.mark.parametrize(
    "label",
    ["delayed_feedback: naive", "delayed_feedback: fnw", "delayed_feedback: esdfm",
     "negative_rate: 0.3"],
)  # fmt: skip
def test_weighted_learning_is_judged_by_true_labels_and_repeats_its_bytes(
    line: Line, tmp_path: Path, label: str
) -> None:
    declared = LINE.replace("provisional_after: 10s}", f"provisional_after: 10s, {label}}}")
    (tmp_path / "copy" / "lines" / "tiny.yaml").write_text(declared, encoding="utf-8")
    line = opened(tmp_path / "copy")
    base = train.full(line.settings, line.spec, 34)
    line.store.advance(line.store.champion(), base, "promote", "test")
    line.tick(13)
    correct_five(line, 41)
    trained = line.learn()
    truth = read_samples(line.spec, line.home, 34, 54, latest=True)["label"].to_numpy()
    version = line.store.get(str(trained.version))
    assert version.metrics["label_rate"] == pytest.approx(truth.mean())
    again = train.incremental(line.settings, line.spec, 34, 54)
    assert line.store.get(again).fingerprint == version.fingerprint
    line.tick(25)
    correct_five(line, 56)
    ended = line.finish(trained)
    assert (ended.outcome, ended.reasons) == ("promoted", ())
    evidence = line.store.evidence(str(trained.version))
    assert evidence is not None
    young = 10 if "fnw" in label else 0  # ticks of a second whose silence is not judged yet
    assert evidence["rows"] == (25 - young) * ROWS


def test_a_correction_of_a_quarantined_sample_takes_nothing_back(line: Line) -> None:
    correct_five(line, 36)
    learned = train.window_samples(line.settings, line.spec, 34, 41).samples
    assert sum(learned["negative_weight"].to_pylist()[-5:]) == -5
    Quarantine(line.home).add(36, 37, ["test"])
    window = train.window_samples(line.settings, line.spec, 34, 41)
    assert window.excluded == [(36, 37)]
    assert sum(window.samples["negative_weight"].to_pylist()[-5:]) == 0
    assert sum(window.samples["positive_weight"].to_pylist()[-5:]) == 5


def test_evaluation_rows_are_newest_revisions_of_impressions_first_seen_there(line: Line) -> None:
    rows = read_samples(line.spec, line.home, 38, 40)
    corrected = rows.slice(3, 1).set_column(
        rows.schema.get_field_index("revision"), "revision", pa.array([1], pa.int32())
    )
    foreign = read_samples(line.spec, line.home, 20, 21).slice(0, 2)
    foreign = foreign.set_column(
        rows.schema.get_field_index("revision"), "revision", pa.array([1, 1], pa.int32())
    )
    both = pa.concat_tables([rows, corrected.cast(rows.schema), foreign.cast(rows.schema)])
    seen = evaluate.first_seen(both)
    assert seen.num_rows == rows.num_rows
    assert seen["revision"].to_pylist() == [0] * (rows.num_rows - 1) + [1]
