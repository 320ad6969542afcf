"""Parquet files of ticks: small ones are cheap, and all hold what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.atomic import write_parquet


@pytest.mark.parametrize(("rows", "codec"), [(0, None), (30, "SNAPPY"), (5_000, "ZSTD")])
def test_equal_tables_give_equal_bytes_by_the_codec_of_their_size(
    tmp_path: Path, rows: int, codec: str | None
) -> None:
    values = np.random.default_rng(7).normal(size=rows)
    table = pa.table({"id": np.arange(rows), "value": values, "name": [f"n{n}" for n in values]})
    for name in ("one", "two"):
        write_parquet(tmp_path / name, table)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert pq.read_table(tmp_path / "one").equals(table)
    if codec is not None:
        assert pq.read_metadata(tmp_path / "one").row_group(0).column(1).compression == codec
