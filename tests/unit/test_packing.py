"""Packs hold what the parts held, tick by tick, and come and go without a reader noticing."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import packing, parts
from headrace.atomic import write_parquet
from headrace.errors import IntegrityError

SCHEMA = pa.schema([("tick", pa.int64()), ("place", pa.int64()), ("name", pa.string())])
LATER = packing.GRACE.total_seconds() + 1


def rows_of(tick: int, count: int) -> pa.Table:
    rows = [{"tick": tick, "place": place, "name": f"{tick}-{place}"} for place in range(count)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write(home: Path, sizes: list[int], folder: str = "samples") -> list[Path]:
    """A part for each size that is not 0, of the tick of that place."""
    paths = []
    for tick, size in enumerate(sizes):
        if size:
            path = parts.own_path(home / folder, tick)
            write_parquet(path, rows_of(tick, size))
            paths.append(path)
    return paths


def told(paths: list[Path]) -> list[pa.Table]:
    """What every way of reading says."""
    return [
        parts.read_all(paths, SCHEMA).combine_chunks(),
        parts.read_all(paths, SCHEMA, ["place"]).combine_chunks(),
        *(parts.read(path).combine_chunks() for path in paths),
        *(parts.read(path, ["name"], SCHEMA).combine_chunks() for path in paths),
        *(pa.concat_tables(parts.batches(path, SCHEMA, None, 2)) for path in paths),
        pa.table({"rows": [parts.count(path) for path in paths]}),
    ]


def files(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def since(home: Path) -> float:
    return max(path.stat().st_mtime for path in home.rglob("*-*.parquet")) + LATER


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    most=st.integers(2, 6),
    keep=st.integers(0, 8),
    heads=st.lists(st.integers(0, 40), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_readers_see_the_same_before_beside_and_after_a_pack(
    sizes: list[int], most: int, keep: int, heads: list[int]
) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        home, other = Path(one), Path(two)
        paths = write(home, sizes)
        write(other, sizes)
        before, known = told(paths), {}
        for head in [
            *sorted(min(head, len(sizes)) for head in heads),
            len(sizes),
        ]:  # a process that lives on
            packing.pack(home, head, known, keep=keep, most=most)
            assert told(paths) == before
        packing.pack(other, len(sizes), keep=keep, most=most)  # and one that comes late
        assert files(home) == files(other)
        _, packs = parts.listed(home / "samples")
        assert all(pack.last < max(len(sizes) - keep, 0) for pack in packs)
        assert [len(parts.contents(pack.path)) for pack in packs] == [most] * len(packs)
        old = sum(size > 0 for size in sizes[: max(len(sizes) - keep, 0)])
        assert len(packs) == max(old - 1, 0) // most
        if packs:
            assert packing.pack(home, 0, now_s=since(home)).removed == most * len(packs)
            assert told(paths) == before
            own, _ = parts.listed(home / "samples")
            assert len(own) == len(paths) - most * len(packs)
            assert packing.pack(home, len(sizes), keep=keep, most=most).packs == 0


def test_a_part_stays_until_the_grace_of_its_pack_is_over(tmp_path: Path) -> None:
    paths = write(tmp_path, [1] * 5, "features/by_item")
    assert packing.pack(tmp_path, 5, keep=0, most=2) == packing.Packed(2, 0)
    assert packing.pack(tmp_path, 5, keep=0, most=2) == packing.Packed(0, 0)
    assert all(path.is_file() for path in paths)
    assert packing.pack(tmp_path, 5, now_s=since(tmp_path)).removed == 4
    assert [path.is_file() for path in paths] == [False] * 4 + [True]
    assert all(parts.exists(path) for path in paths)
    assert not parts.exists(parts.own_path(tmp_path / "features/by_item", 5))


def test_many_parts_are_read_from_packs_as_soon_as_there_are_some(tmp_path: Path) -> None:
    paths = write(tmp_path, [2] * 7)
    packing.pack(tmp_path, 7, keep=0, most=3)
    for path in paths[:6]:
        path.write_bytes(b"nobody reads this")
    some = [paths[place] for place in (0, 1, 4, 5, 6)]
    expected = pa.concat_tables([rows_of(tick, 2) for tick in (0, 1, 4, 5, 6)])
    assert parts.read_all(some, SCHEMA).equals(expected)
    assert parts.read_all(some, SCHEMA, ["name"]).equals(expected.select(["name"]))


def test_a_large_part_and_another_schema_end_a_pack(tmp_path: Path) -> None:
    large = parts.PACK_ROWS // 2 + 1
    paths = write(tmp_path, [3, 3, large, 3, 3, 3, 3, 3])
    table = rows_of(6, 3).append_column("more", pa.array([1, 2, 3]))
    write_parquet(paths[6], table)
    packing.pack(tmp_path, 8, keep=0)
    _, packs = parts.listed(tmp_path / "samples")
    assert [(pack.first, pack.last) for pack in packs] == [(0, 1), (3, 5)]


def test_a_pack_holds_no_more_rows_than_fit(tmp_path: Path) -> None:
    write(tmp_path, [parts.PACK_ROWS // 3] * 7)
    packing.pack(tmp_path, 7, keep=0)
    _, packs = parts.listed(tmp_path / "samples")
    assert [(pack.first, pack.last) for pack in packs] == [(0, 2), (3, 5)]


def test_a_torn_part_is_named_and_nothing_is_removed(tmp_path: Path) -> None:
    paths = write(tmp_path, [1, 1, 1])
    paths[1].write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"b=00000001\.parquet: not readable"):
        packing.pack(tmp_path, 3, keep=0, most=2)
    assert len(files(tmp_path)) == 3


def test_a_pack_that_does_not_read_back_never_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path, [1, 1, 1])
    before = told(paths)

    def forgetful(path: Path, table: pa.Table) -> None:
        write_parquet(path, table.slice(1))

    monkeypatch.setattr(packing, "write_parquet", forgetful)
    with pytest.raises(IntegrityError, match="differs from its parts"):
        packing.pack(tmp_path, 3, keep=0, most=2)
    assert sorted((tmp_path / "samples").iterdir()) == paths
    assert told(paths) == before


def test_a_part_that_is_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path, [1, 1, 1])
    packing.pack(tmp_path, 3, keep=0, most=2)
    with pytest.raises(FileNotFoundError, match=r"b=00000007\.parquet: no such part"):
        parts.read(parts.own_path(tmp_path / "samples", 7))
