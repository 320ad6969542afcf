"""Feature rows from memory: what Feast's history says, at a cost that does not follow history."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import parts
from headrace.bits import bits
from headrace.errors import IntegrityError
from headrace.events import event_schema, input_fields
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from headrace.packing import pack
from headrace.sample import head_tick, read_tick
from headrace.scoring import batch
from headrace.scoring import newest as newest_module
from headrace.scoring.impressions import AT, Interval, LogRows
from headrace.scoring.nearline import Nearline
from headrace.scoring.nearline import parts as nearline_parts
from headrace.scoring.newest import SLACK_US, Newest
from headrace.serving.swap import Follower
from tests.contract.scored_line import AlikeLine, asked
from tests.serving import until

BEGAN_US = 1_750_000_000_000_000
MINUTE_US = 60_000_000


def live(line: AlikeLine, ticks: int, seed: int) -> None:
    """Ticks a minute apart, now and then half an hour: windows of ten minutes fill and empty."""
    draw, now_us = np.random.default_rng(seed), BEGAN_US
    writer = EventWriter(line.home / "log" / "events", line.spec)
    schema = event_schema(line.spec)
    blank = dict.fromkeys(schema.names)
    for tick in range(ticks):
        now_us += 30 * MINUTE_US if draw.random() < 0.1 else MINUTE_US
        rows = []
        for number in range(6):
            # a clock that was ahead, and one that was late by up to eight minutes
            own_us = now_us + int(draw.integers(-8 * MINUTE_US, MINUTE_US))
            row = {"event": "impression", "impression_id": f"{tick}:{number}", "value": 0}
            rows.append(blank | asked(draw) | row | {"event_at": own_us, "arrival_at": now_us})
            if draw.random() < 0.4:
                row = {"event": "click", "impression_id": f"{tick}:{number}", "value": 1}
                rows.append(blank | row | {"event_at": own_us, "arrival_at": now_us})
        writer.append_stamped(pa.Table.from_pylist(rows, schema=schema))
        line.tick(push=False)
    writer.close()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> AlikeLine:
    line = AlikeLine(tmp_path_factory.mktemp("newest"))
    live(line, ticks=70, seed=3)
    return line


def impressions(line: AlikeLine, start: int, stop: int) -> pa.Table:
    rows = LogRows.of(line.spec, line.home, "impressions").read(start, stop)
    moments = rows[AT].cast(pa.int64())
    return rows.select(list(line.spec.columns)).append_column("request_at", moments)


def alike(line: AlikeLine, found: pa.Table, expected: pa.Table) -> None:
    for field in input_fields(line.spec):
        np.testing.assert_array_equal(bits(found[field.name]), bits(expected[field.name]))


@pytest.mark.parametrize("spare_rows", [0, 40, 10_000])
@pytest.mark.parametrize("start", [0, 300])
def test_memory_says_what_history_says(
    lived: AlikeLine, monkeypatch: pytest.MonkeyPatch, spare_rows: int, start: int
) -> None:
    monkeypatch.setattr(newest_module, "_TICKS", 7)
    monkeypatch.setattr(newest_module, "_FEW", 3)
    newest = Newest(lived.spec, lived.home, spare_rows=spare_rows)
    head = FileLog(lived.home / "log" / "events", event_schema(lived.spec)).head
    draw, answers, late = np.random.default_rng(spare_rows), [], 0
    while start < head:
        stop = min(start + int(draw.integers(1, 60)), head)
        newest.take_in(start, stop)
        rows = impressions(lived, start, stop)
        near = pa.array(rows["request_at"].to_numpy() >= newest.floor_us)
        late += rows.num_rows - rows.filter(near).num_rows
        found = newest.inputs(rows.filter(near))
        answers.append((rows.filter(near), found))
        start = stop
    asked_for, told = (pa.concat_tables(tables) for tables in zip(*answers, strict=True))
    alike(lived, told, lived.store.read_history(lived.spec, asked_for))
    assert (told["user_shows_log"].to_numpy() > 0).sum() > 50
    assert late == 0  # clocks were late by less than the slack
    if spare_rows < 10_000:
        assert newest.floor_us > BEGAN_US
        held = sum(view._rows.num_rows for view in newest._views.values())
        stored = sum(read_tick(lived.home, n).counts["features"] for n in range(70))
        assert held < stored / 2


def test_what_is_older_than_the_windows_is_not_read(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    live(line, ticks=60, seed=4)
    ticks = [read_tick(line.home, number) for number in range(60)]
    start = ticks[50].events[0]
    rows = impressions(line, start, ticks[-1].events[1])
    expected = line.store.read_history(line.spec, rows)
    floor_us = max(tick.at_us for tick in ticks if tick.at_us <= ticks[49].at_us - SLACK_US)
    gone = [t for t in ticks if t.at_us <= floor_us - line.spec.longest_window_us]
    assert len(gone) > 10
    for tick in gone:
        for view in tick.features:
            parts.own_path(line.home / "features" / view, tick.tick).unlink()
    newest = Newest(line.spec, line.home)
    newest.take_in(start, ticks[-1].events[1])
    alike(line, newest.inputs(rows), expected)


def test_packs_and_torn_parts_are_as_elsewhere(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    live(line, ticks=30, seed=5)
    rows = impressions(line, 0, read_tick(line.home, 29).events[1])
    expected = line.store.read_history(line.spec, rows)
    pack(line.home, head_tick(line.home), keep=5, most=10)
    an_hour_later = time.time() + 2 * 3600
    pack(line.home, head_tick(line.home), keep=5, most=10, now_s=an_hour_later)
    folder = line.home / "features" / "alike_by_item"
    assert len(list(folder.glob("b=*-*.parquet"))) == 2
    assert len(list(folder.glob("b=????????.parquet"))) == 10
    newest = Newest(line.spec, line.home)
    newest.take_in(0, read_tick(line.home, 29).events[1])
    alike(line, newest.inputs(rows), expected)
    torn = sorted(folder.glob("b=????????.parquet"))[-1]
    torn.write_bytes(torn.read_bytes()[:40])
    with pytest.raises(IntegrityError, match=r"alike_by_item: a part is not readable.*restore it"):
        Newest(line.spec, line.home).take_in(0, read_tick(line.home, 29).events[1])
    assert pq.read_metadata(sorted(folder.glob("b=*-*.parquet"))[0]).num_rows > 0


def test_an_impression_of_long_ago_is_asked_of_history(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    line.crown(line.publish(1))
    live(line, ticks=40, seed=6)
    own_us = [BEGAN_US + 5 * MINUTE_US, BEGAN_US + 9 * MINUTE_US]
    of_long_ago = [{"user_id": "ann", "item": 1, "price": 2.0, "event_at": at} for at in own_us]
    line.append([row | {"impression_id": f"late{n}"} for n, row in enumerate(of_long_ago)])
    line.tick(push=False)
    models = Follower(line.spec, line.lines)
    models.start(prepare=lambda: None)
    until(lambda: models.ready)
    follower = Nearline(line.settings, line.spec, "impressions", models, most=50)
    follower._newest = Newest(line.spec, line.home, spare_rows=0)
    while follower.look():
        assert follower.standing.behind > 0
    models.stop()
    assert follower._newest.floor_us > max(own_us)
    found = pa.concat_tables([pq.read_table(part.path) for part in nearline_parts(follower.folder)])
    assert follower.standing.rows == found.num_rows == 40 * 6 + 2
    whole = Interval(line.spec, line.home, (1, 2**61))
    batch.score(line.settings, line.spec, whole, tmp_path / "all.parquet", at_column=AT)
    expected = pq.read_table(tmp_path / "all.parquet")
    assert found["offset"].equals(expected["offset"])
    np.testing.assert_array_equal(bits(found["score"]), bits(expected["score"]))
    follower.close()
