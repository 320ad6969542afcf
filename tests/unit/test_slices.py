"""Streams of tables cut anew, and the newest revisions found without holding the stream."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.labels.revisions import Corrected, newest
from headrace.slices import even, without_short_end


@given(sizes=st.lists(st.integers(0, 9), max_size=12), rows=st.integers(1, 7))
def test_even_tables_hold_the_same_rows_in_the_same_order(sizes: list[int], rows: int) -> None:
    numbers = iter(range(sum(sizes)))
    tables = [pa.table({"n": pa.array([next(numbers) for _ in range(s)], "int64")}) for s in sizes]
    cut = list(even(tables, rows))
    assert [n for table in cut for n in table["n"].to_pylist()] == list(range(sum(sizes)))
    assert all(table.num_rows == rows for table in cut[:-1])
    assert all(0 < table.num_rows <= rows and table["n"].num_chunks == 1 for table in cut)


def test_a_short_end_is_joined_to_the_table_before_it() -> None:
    def sizes(rows: int) -> list[int]:
        cut = even([pa.table({"n": range(rows)})], 10)
        return [table.num_rows for table in without_short_end(cut, 5)]

    assert [sizes(rows) for rows in (0, 3, 10, 14, 15, 24, 29)] == [
        [], [3], [10], [14], [10, 5], [10, 14], [10, 10, 9],
    ]  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> pa.Table:
    """Revisions of a few impressions; each rises along the stream, some begin with a correction."""
    offsets = draw(st.lists(st.integers(0, 12), max_size=40))
    start = draw(st.lists(st.integers(0, 1), min_size=13, max_size=13))
    revisions = [start[o] + offsets[:place].count(o) for place, o in enumerate(offsets)]
    label = [min(revision, 1) for revision in revisions]
    return pa.table(
        {
            "impression_offset": pa.array(offsets, pa.int64()),
            "revision": pa.array(revisions, pa.int32()),
            "label": pa.array(label, pa.int8()),
            "positive_weight": pa.array(label, pa.float32()),
            "negative_weight": pa.array([-1.0] * len(label), pa.float32()),
        }
    )


@given(stream=streams(), size=st.integers(1, 9))
def test_the_newest_revisions_of_a_stream_are_found_part_by_part(
    stream: pa.Table, size: int
) -> None:
    parts = [stream.slice(start, size) for start in range(0, stream.num_rows, size)]
    corrected = Corrected()
    for part in parts:
        corrected.see(part)
    found = [corrected.newest(part) for part in parts]
    whole = newest(stream)
    assert pa.concat_tables([whole.slice(0, 0), *found]).equals(whole)


def test_a_stream_without_corrections_is_kept_whole() -> None:
    nothing = Corrected()
    rows = pa.table({"impression_offset": [3, 4], "revision": pa.array([0, 0], pa.int32())})
    assert np.all(nothing.is_newest(rows))
