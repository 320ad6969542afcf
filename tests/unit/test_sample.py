"""Reading committed ticks, and the quarantine."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.atomic import write_json, write_parquet
from headrace.errors import InputError, IntegrityError
from headrace.events import sample_schema
from headrace.quarantine import Quarantine
from headrace.sample import (
    SampleTail,
    TickManifest,
    check_ticks,
    head_tick,
    read_samples,
    tick_as_of,
    ticks,
)
from headrace.settings import load_line

SPEC = load_line(Path(__file__).parents[2] / "lines" / "coupons.yaml")


def sample(offset: int, revision: int, label: int, weights: tuple[int, int]) -> dict[str, object]:
    schema = sample_schema(SPEC)
    row: dict[str, object] = {field.name: None if field.nullable else 0 for field in schema}
    row |= {"impression_id": f"i{offset}", "request_id": "r", "version": "v000001"}
    row |= {"revision": revision, "label": label, "impression_offset": offset}
    return row | {"positive_weight": weights[0], "negative_weight": weights[1]}


def commit(home: Path, tick: int, rows: list[dict[str, object]]) -> TickManifest:
    path = f"samples/b={tick:08d}.parquet" if rows else None
    if path:
        write_parquet(home / path, pa.Table.from_pylist(rows, schema=sample_schema(SPEC)))
    manifest = TickManifest(tick, tick + 1, (tick, tick + 1), (0, 0), path, None, {}, {"events": 1})
    write_json(home / "ticks" / f"{tick:08d}.json", manifest.to_json())
    return manifest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    commit(tmp_path, 0, [sample(0, 0, 0, (0, 1)), sample(1, 0, 1, (1, 0))])
    commit(tmp_path, 1, [])
    commit(tmp_path, 2, [sample(0, 1, 1, (1, -1)), sample(2, 0, 0, (0, 1))])
    return tmp_path


def weights(samples: pa.Table) -> list[tuple[int, float, float]]:
    columns = ("impression_offset", "positive_weight", "negative_weight")
    return list(zip(*(samples[name].to_pylist() for name in columns), strict=True))


def test_the_head_counts_manifests_only(home, tmp_path):
    (home / "ticks" / "00000003.plan.json").write_text("{}")
    (home / "ticks" / "00000004.json.tmp").write_text("{")
    assert head_tick(home) == 3
    assert [manifest.tick for manifest in ticks(home)] == [0, 1, 2]
    assert head_tick(home / "absent") == 0


def test_the_head_is_found_among_any_number_of_ticks(tmp_path):
    (tmp_path / "ticks").mkdir()
    for tick in range(70):
        assert head_tick(tmp_path) == tick
        (tmp_path / "ticks" / f"{tick:08d}.plan.json").touch()
        (tmp_path / "ticks" / f"{tick:08d}.json").touch()
    check_ticks(tmp_path)


def test_a_missing_manifest_is_named(tmp_path):
    check_ticks(tmp_path)
    (tmp_path / "ticks").mkdir()
    for tick in (0, 1, 3, 4):
        (tmp_path / "ticks" / f"{tick:08d}.json").touch()
    with pytest.raises(IntegrityError, match=r"00000002\.json: missing"):
        check_ticks(tmp_path)


def test_samples_come_in_stream_order_from_manifests_only(home):
    write_parquet(home / "samples" / "b=00000001.parquet", sample_schema(SPEC).empty_table())
    assert weights(read_samples(SPEC, home, 0, 3)) == [
        (0, 0, 1),
        (1, 1, 0),
        (0, 1, -1),
        (2, 0, 1),
    ]
    assert read_samples(SPEC, home, 1, 2).schema == sample_schema(SPEC)
    assert weights(read_samples(SPEC, home, 0, 3, exclude=[(0, 2)])) == [(0, 1, -1), (2, 0, 1)]


def test_latest_keeps_one_revision_with_plain_weights(home):
    assert weights(read_samples(SPEC, home, 0, 3, latest=True)) == [(1, 1, 0), (0, 1, 0), (2, 0, 1)]
    assert weights(read_samples(SPEC, home, 0, 2, latest=True)) == [(0, 0, 1), (1, 1, 0)]


def test_intervals_beyond_the_head_and_torn_manifests_are_errors(home):
    with pytest.raises(InputError, match="ticks 0-4"):
        read_samples(SPEC, home, 0, 4)
    (home / "ticks" / "00000001.json").write_text("{")
    with pytest.raises(IntegrityError, match="00000001"):
        ticks(home)


def test_a_quarantined_interval_can_be_released(tmp_path):
    quarantine = Quarantine(tmp_path)
    assert quarantine.intervals() == []
    quarantine.add(20, 30, ["label rate"])
    quarantine.add(5, 9, ["rows", "missing"])
    quarantine.add(5, 9, ["rows", "missing"])
    assert [(b["from"], b["to"], b["reasons"]) for b in quarantine.intervals()] == [
        (5, 9, ["rows", "missing"]),
        (20, 30, ["label rate"]),
    ]
    quarantine.release(5, 9)
    assert [body["from"] for body in quarantine.intervals()] == [20]
    with pytest.raises(InputError, match="quarantined are: 20-30"):
        quarantine.release(5, 9)
    with pytest.raises(InputError, match="interval"):
        quarantine.add(3, 3, [])


def test_a_sample_can_be_read_as_it_was_known_at_a_tick(home):
    commit(home, 3, [sample(2, 1, 1, (1, -1))])
    as_of = [weights(read_samples(SPEC, home, 0, 2, as_of_tick=tick)) for tick in (2, 3, 4)]
    assert as_of == [[(0, 0, 1), (1, 1, 0)], [(0, 1, 0), (1, 1, 0)], [(0, 1, 0), (1, 1, 0)]]
    # a correction belongs to the interval of its first sample, so intervals never overlap
    assert weights(read_samples(SPEC, home, 2, 3, as_of_tick=3)) == [(2, 0, 1)]
    assert weights(read_samples(SPEC, home, 2, 3, as_of_tick=4)) == [(2, 1, 0)]
    assert weights(read_samples(SPEC, home, 0, 2, exclude=[(2, 3)], as_of_tick=4)) == as_of[0]
    assert [tick_as_of(home, at_us) for at_us in (0, 1, 2, 9)] == [0, 1, 2, 4]
    for tick in (1, 5):
        with pytest.raises(InputError, match=f"as_of_tick={tick}"):
            read_samples(SPEC, home, 0, 2, as_of_tick=tick)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[list[dict[str, object]]]]:
    """Ticks of first samples (some negatives) and at most one correction each, some ticks later."""
    ticks = draw(st.integers(1, 6))
    rows: list[list[dict[str, object]]] = [[] for _ in range(ticks)]
    for offset in range(draw(st.integers(0, 8))):
        first, label = draw(st.integers(0, ticks - 1)), draw(st.integers(0, 1))
        rows[first].append(sample(offset, 0, label, (label, 1 - label)))
        later = draw(st.integers(first, ticks + 2))
        if not label and later < ticks:
            rows[later].append(sample(offset, 1, 1, (1, -1)))
    return ticks, rows


@settings(max_examples=40, deadline=None)
@given(histories(), st.data())
def test_time_travel_equals_a_stop_at_that_tick(history, data):
    count, rows = history
    now, cut = data.draw(st.integers(0, count)), data.draw(st.integers(0, count))
    cut = min(cut, now)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        for tick in range(now):
            commit(home, tick, rows[tick])
        then = read_samples(SPEC, home, 0, now, latest=True)
        for tick in range(now, count):
            commit(home, tick, rows[tick])
        parts = [
            read_samples(SPEC, home, *interval, as_of_tick=now)
            for interval in ((0, cut), (cut, now))
        ]
    assert sorted(weights(pa.concat_tables(parts))) == sorted(weights(then))


def test_a_tail_reads_each_tick_once_and_anew_from_another_start(home: Path) -> None:
    tail = SampleTail(SPEC, home, ["impression_offset", "label"])
    assert tail.read(0, 1, [])["impression_offset"].to_pylist() == [0, 1]
    (home / "samples" / "b=00000000.parquet").rename(home / "moved")  # it is not read again
    assert tail.read(0, 3, [])["impression_offset"].to_pylist() == [0, 1, 0, 2]
    assert tail.read(0, 3, []).column_names == ["impression_offset", "label"]
    assert tail.read(2, 3, [])["label"].to_pylist() == [1, 0]
    (home / "moved").rename(home / "samples" / "b=00000000.parquet")
    assert tail.read(0, 3, [(2, 3)])["impression_offset"].to_pylist() == [0, 1]
    assert tail.read(0, 3, [(2, 3)]).equals(
        read_samples(SPEC, home, 0, 3, [(2, 3)]).select(["impression_offset", "label"])
    )
