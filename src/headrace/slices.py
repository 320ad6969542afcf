"""Tables of any size become tables of one size. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa


def even(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in the same order, in tables of `rows` rows, the last one of fewer.

    Each is in one chunk. Nothing in, nothing out.
    """
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        start = 0
        while count + table.num_rows - start >= rows:
            stop = start + rows - count
            waiting.append(table.slice(start, stop - start))
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, count, start = [], 0, stop
        if start < table.num_rows:
            waiting.append(table.slice(start))
            count += table.num_rows - start
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def without_short_end(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same tables; a last one of fewer than `rows` rows is joined to the one before it."""
    held: pa.Table | None = None
    for table in tables:
        if held is None:
            held = table
        elif table.num_rows < rows:
            held = pa.concat_tables([held, table]).combine_chunks()
        else:
            yield held
            held = table
    if held is not None:
        yield held
