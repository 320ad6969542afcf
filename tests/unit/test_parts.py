"""Many small parts are read as one dataset of them would be, whatever columns they have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from headrace import parts
from headrace.atomic import write_parquet

SCHEMA = pa.schema([("place", pa.int64()), ("name", pa.string()), ("later", pa.float64())])
TICKS = 5


def written(folder: Path, tick: int, *, old: bool) -> Path:
    """A part of three rows; one of an `old` writer has int32 places, and no column `later`."""
    rows = [
        {"place": 3 * tick + n, "name": f"{tick}-{n}", "later": 0.5 * n, "more": n}
        for n in range(3)
    ]
    table = pa.Table.from_pylist(rows)
    if old:
        table = table.drop_columns(["later"])
        table = table.set_column(0, "place", table["place"].cast(pa.int32()))
    path = parts.own_path(folder, tick)
    write_parquet(path, table)
    return path


@pytest.mark.parametrize("columns", [None, ["name"], ["later", "place"]])
@pytest.mark.parametrize("old", [set(), {2}, set(range(TICKS))])
def test_parts_are_read_as_a_dataset_of_them_is(
    tmp_path: Path, columns: list[str] | None, old: set[int]
) -> None:
    paths = [written(tmp_path, tick, old=tick in old) for tick in range(TICKS)]
    wanted = ds.dataset([str(path) for path in paths], SCHEMA, "parquet").to_table(columns)
    for found in (
        parts.read_all(paths, SCHEMA, columns),
        pa.concat_tables(t for p in paths for t in parts.batches(p, SCHEMA, columns, rows=10)),
        pa.concat_tables(t for p in paths for t in parts.batches(p, SCHEMA, columns, rows=2)),
    ):
        assert found.equals(wanted)
        assert found.schema.equals(wanted.schema, check_metadata=True)
