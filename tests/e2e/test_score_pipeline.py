"""The pipeline `batch_score` by kfp.local: the scores of the verb, and a failure that is told."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.errors import HeadraceError
from headrace.launch import run_errand
from headrace.scoring.run import interval_of, score_rows
from tests.contract.scored_line import AlikeLine

pytestmark = pytest.mark.e2e


def test_the_pipeline_scores_what_the_verb_scores(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    line.publish(1)
    line.crown(line.publish(2))
    for number in range(3):
        line.traffic(number)
        line.tick()
    between = ("2020-01-01", "2100-01-01T00:00:00+00:00")
    asked = {"start": between[0], "end": between[1]}
    ended = run_errand(line.settings, "batch_score", "alike", asked | {"version": "v000001"})
    assert ended.log is not None
    written = line.home / "scores" / "batch" / "20200101T000000Z-21000101T000000Z.parquet"
    assert f"{written}" in Path(ended.log).read_text()
    again = score_rows(
        line.settings, line.spec, tmp_path / "again.parquet",
        interval=interval_of(*between), version="v000001",
    )  # fmt: skip
    assert again.rows == 36
    assert pq.read_table(written).equals(pq.read_table(again.output))
    with pytest.raises(HeadraceError, match=r"batch_score alike: .*; see .*kfp-run-\d+\.log"):
        run_errand(line.settings, "batch_score", "alike", asked | {"version": "v9"})
