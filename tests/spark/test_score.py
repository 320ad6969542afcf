"""`headrace score-batch --spark`: the same function in Spark's workers, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.events import TIME
from headrace.scoring import batch
from headrace.scoring.files import InputFile
from tests.contract.scored_line import AlikeLine, asked


@pytest.mark.spark
def test_spark_leaves_the_bytes_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = AlikeLine(tmp_path)
    line.crown(line.publish(1))
    moments = []
    for number in range(5):
        line.traffic(number)
        line.tick()
        moments.append(line.state.at_us)
    draw = np.random.default_rng(3)
    rows = [asked(draw) | {"asked_at": int(draw.integers(moments[0] - 9, moments[-1] + 9))}
            for _ in range(1_000)]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    at = table.schema.get_field_index("asked_at")
    table = table.set_column(at, "asked_at", table["asked_at"].cast(TIME))
    pq.write_table(table, tmp_path / "rows.parquet")
    monkeypatch.setattr(batch, "clock_us", lambda: moments[-1] + 1)
    for at_column in ("asked_at", None):
        for engine in ("local", "spark"):
            with InputFile(tmp_path / "rows.parquet") as source:
                told = batch.score(
                    line.settings, line.spec, source, tmp_path / f"{engine}.parquet",
                    at_column=at_column, engine=engine, chunk_rows=260,
                )  # fmt: skip
            assert (told.rows, told.refused) == (1_000, 0)
        local, by_spark = tmp_path / "local.parquet", tmp_path / "spark.parquet"
        assert by_spark.read_bytes() == local.read_bytes()
        found = pq.read_table(local)
        assert found.select(table.column_names).equals(table)
        assert len(found["score"].unique()) > (100 if at_column else 20)
    assert not list(tmp_path.glob("*.parquet.*"))  # the chunks are gone
