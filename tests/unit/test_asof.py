"""The point-in-time search against an oracle that shares no code with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import asof
from headrace.errors import InputError

US = pa.timestamp("us", tz="UTC")
Key = tuple[Any, ...]
keys = st.tuples(st.sampled_from(["a", "b", "ab", None]), st.sampled_from([1, 2**62 + 1, None]))
moments = st.integers(0, 4)
rows = st.lists(st.tuples(keys, moments, st.none() | moments), max_size=25)
questions = st.lists(st.tuples(keys, st.none() | moments), max_size=25)


def times(values: list[Any]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.int64()).cast(US)])


def columns(found: list[Key], width: int) -> list[pa.ChunkedArray]:
    kinds = [pa.string(), pa.int64()][:width]
    return [
        pa.chunked_array([pa.array([key[place] for key in found], kind)])
        for place, kind in enumerate(kinds)
    ]


def naive(
    stored: list[tuple[Key, int, int | None]],
    key: Key,
    at: int | None,
    ttl: int | None,
    created: bool,
    as_known: bool,
) -> int | None:
    """The place of the row that a patient reader would pick, looking at every row."""
    best: tuple[tuple[int, int], int] | None = None
    for place, (row_key, row_at, row_created) in enumerate(stored):
        if at is None or row_key != key or None in key:
            continue
        if row_at > at or (ttl is not None and row_at < at - ttl):
            continue
        if as_known and created and (row_created is None or row_created > at):
            continue
        rank = (row_at, (-1 if row_created is None else row_created) if created else 0)
        if best is None or rank >= best[0]:
            best = (rank, place)
    return None if best is None else best[1]


def joined(
    stored: list[tuple[Key, int, int | None]],
    asked: list[tuple[Key, int | None]],
    width: int = 2,
    ttl: int | None = None,
    created: bool = False,
    as_known: bool = False,
    block: int = 100,
) -> list[int | None]:
    join = asof.AsOfJoin(
        asof.Moments.of(times([at for _, at in asked])),
        columns([key for key, _ in asked], width),
        ttl,
        as_known=as_known,
    )
    for first in range(0, len(stored), block):
        part = stored[first : first + block]
        join.absorb(
            columns([key for key, _, _ in part], width),
            times([at for _, at, _ in part]),
            times([at for _, _, at in part]) if created else None,
            pa.table({"place": pa.array(range(first, first + len(part)), pa.int64())}),
        )
    return join.found(pa.schema([("place", pa.int64())]))["place"].to_pylist()


@settings(max_examples=200, deadline=None)
@given(
    rows,
    questions,
    st.none() | st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.integers(1, 6),
    st.integers(0, 2),
)
def test_the_newest_visible_row_is_found_however_rows_are_cut_into_blocks(
    stored: list[tuple[Key, int, int | None]],
    asked: list[tuple[Key, int | None]],
    ttl: int | None,
    created: bool,
    as_known: bool,
    block: int,
    width: int,
) -> None:
    stored = [(key[:width], at, made) for key, at, made in stored]
    asked = [(key[:width], at) for key, at in asked]
    if as_known and created:  # a row whose creation is unknown is dropped by the reader
        stored = [row for row in stored if row[2] is not None]
    expected = [naive(stored, key, at, ttl, created, as_known) for key, at in asked]
    assert joined(stored, asked, width, ttl, created, as_known, block) == expected


@pytest.mark.parametrize("block", [1, 2, 9])
@pytest.mark.parametrize("made", [None, 3])
def test_of_rows_of_equal_time_the_last_one_wins(block: int, made: int | None) -> None:
    stored = [((), 4, made), ((), 7, 1), ((), 7, 3), ((), 7, made), ((), 2, 9)]
    wanted = 3 if made == 3 else 2
    assert joined(stored, [((), 7), ((), 6)], 0, None, True, False, block) == [wanted, 0]
    assert joined(stored, [((), 7), ((), 6)], 0, None, False, False, block) == [3, 0]


def test_many_keys_are_numbered_anew_and_rows_out_of_use_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asof, "_MOST_NUMBERS", 3)
    monkeypatch.setattr(asof, "BLOCK_ROWS", 8)
    rng = np.random.default_rng(3)
    names, numbers = rng.choice(["a", "b", "c", "d"], 400), rng.integers(0, 5, 400)
    drawn = [(str(name), int(number) or None) for name, number in zip(names, numbers, strict=True)]
    stored = [(key, place // 3, None) for place, key in enumerate(drawn[:300])]
    asked = [(key, int(at)) for key, at in zip(drawn[300:], rng.integers(0, 100, 100), strict=True)]
    expected = [naive(stored, key, at, None, False, False) for key, at in asked]
    assert joined(stored, asked, block=8) == expected
    assert len({*expected}) > 10


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.dictionary(pa.int32(), pa.int64())])
def test_a_key_is_the_same_in_every_width(kind: pa.DataType) -> None:
    join = asof.AsOfJoin(asof.Moments.of(times([5])), [pa.chunked_array([pa.array([7])])])
    stored = pa.chunked_array([pa.array([7], pa.int64())])
    stored = stored.dictionary_encode() if pa.types.is_dictionary(kind) else stored.cast(kind)
    join.absorb([stored], times([5]), None, pa.table({"v": [1]}))
    assert join.found(pa.schema([("v", pa.int64())]))["v"].to_pylist() == [1]


def test_a_key_of_another_kind_is_refused_by_its_types() -> None:
    join = asof.AsOfJoin(asof.Moments.of(times([5])), [pa.chunked_array([pa.array(["7"])])])
    with pytest.raises(InputError, match=r"a key is large_string .* int64 where it is stored"):
        join.absorb([pa.chunked_array([pa.array([7])])], times([5]), None, pa.table({"v": [1]}))


def test_times_of_other_units_are_compared_in_microseconds() -> None:
    nanoseconds = pa.chunked_array([pa.array([5_999], pa.int64()).cast(pa.timestamp("ns"))])
    seconds = pa.chunked_array([pa.array([2, None], pa.int64()).cast(pa.timestamp("s"))])
    assert asof.microseconds(nanoseconds).tolist() == [5]
    assert asof.microseconds(seconds).tolist() == [2_000_000, asof.NEVER]
