"""A promotion: evidence for exactly these versions, and a gate that saw the window."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from headrace import evaluate, promote, train
from headrace.sample import Quarantine
from tests.contract.written_line import ROWS, Line


def test_a_served_row_that_does_not_recompute_blocks_the_promotion(line: Line) -> None:
    line.tick(3, version="v000001")
    trained = line.learn()
    line.tick(4, version="v000001")
    path = line.home / "samples" / "b=00000044.parquet"
    samples = pq.read_table(path, partitioning=None)
    place = samples.schema.get_field_index("clicks_log")
    off = pa.array([5e-324, *[0.0] * (ROWS - 1)])  # the smallest number above 0
    pq.write_table(samples.set_column(place, samples.schema.field(place), off), path)
    ended = line.finish(trained)
    assert (ended.outcome, line.champion) == ("rejected", "v000001")
    assert ended.reasons == (
        f"parity_holds: 1 mismatches in {4 * ROWS} rows (1 formula), must be 0",
    )
    assert Quarantine(line.home).intervals() == []


def test_a_candidate_whose_parent_was_rolled_away_is_rejected(line: Line) -> None:
    trained = line.learn()
    line.tick(4)
    other = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), other, "promote", "another writer")
    ended = line.finish(trained)
    assert ended.outcome == "rejected"
    assert any(r.startswith("descends_from_champion") for r in ended.reasons)
    assert line.champion == other


def test_evidence_against_an_earlier_champion_is_foreign(line: Line) -> None:
    trained = line.learn()
    assert trained.version is not None
    line.tick(4)
    evaluate.evaluate(line.settings, line.spec, trained.version, wait_s=0)
    other = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), other, "promote", "another writer")
    verdict = promote.promote(line.settings, line.spec, trained.version)
    assert "evidence_is_for_these_versions" in verdict.failed


def test_promotion_without_evidence_is_rejected(line: Line) -> None:
    candidate = train.incremental(line.settings, line.spec, 34, 40)
    verdict = promote.promote(line.settings, line.spec, candidate)
    assert verdict.failed == ("evidence",)
    assert line.champion == "v000001"


def test_a_window_that_skipped_the_data_gate_is_rejected(line: Line) -> None:
    line.tick(2)
    candidate = train.incremental(line.settings, line.spec, 34, 42)
    line.tick(4)
    evaluate.evaluate(line.settings, line.spec, candidate, wait_s=0)
    assert promote.promote(line.settings, line.spec, candidate).failed == ("data_gate_passed",)


def test_promoting_twice_changes_nothing(line: Line) -> None:
    trained = line.learn()
    line.tick(4)
    assert line.finish(trained).outcome == "promoted"
    before = line.store.champion()
    assert promote.promote(line.settings, line.spec, str(trained.version)).passed
    assert line.store.champion() == before
