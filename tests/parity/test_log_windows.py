"""What was in a window is told by a stretch of the log as by all of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import event_schema
from headrace.log.files import FileLog
from headrace.parity.recompute import LogWindows, offsets_between
from headrace.sample import TickManifest, read_tick
from tests.parity.lived_line import SECOND, T0, as_int, asked


@pytest.fixture(scope="module")
def day(spec: LineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of five hours in ticks of a minute: repeated, early, late and unmatched records."""
    home, random, ids = tmp_path_factory.mktemp("day"), np.random.default_rng(3), 0
    log = FileLog(home / "log" / "events", event_schema(spec), writer=True)
    (home / "ticks").mkdir()
    rows: list[dict[str, object]] = []
    for tick in range(300):
        now_us, first = T0 + tick * 60 * SECOND, len(rows)
        for _ in range(random.integers(1, 30)):
            kind = random.random()
            ids += kind < 0.5
            # a click names one of the last ids or the next, an impression now and then an old one
            back = 0 if kind < 0.5 else random.integers(-1, 60)
            lag_us = int(random.choice([0, 5, 60, 290, 700, 890])) * SECOND
            rows.append(
                {
                    "event": "impression" if kind < 0.6 else "click",
                    "impression_id": f"i{max(ids - back, 0)}",
                    "event_at": now_us - lag_us,
                    "arrival_at": now_us,
                    "value": int(kind >= 0.6),
                    **asked(random),
                }
            )
        manifest = TickManifest(tick, now_us + 1, (first, len(rows)), (0, 0), None, None, {}, {})
        _commit(home, manifest)
    schema = event_schema(spec)
    log.append(pa.Table.from_pylist(rows, schema=as_int(schema)).cast(schema))
    log.close()
    return home


def _commit(home: Path, manifest: TickManifest) -> None:
    text = json.dumps(manifest.to_json())
    (home / "ticks" / f"{manifest.tick:08d}.json").write_text(text, encoding="utf-8")


def test_a_stretch_of_the_log_gives_what_the_whole_log_gives(day: Path, spec: LineSpec):
    log, random = FileLog(day / "log" / "events", event_schema(spec)), np.random.default_rng(5)
    whole = LogWindows.read(spec, day, 0, T0 + 300 * 60 * SECOND)
    for minute in (90, 200, 280):
        from_us, to_us = (T0 + m * 60 * SECOND for m in (minute, minute + 15))
        start, stop = offsets_between(day, log, from_us - 75 * 60 * SECOND, to_us)
        assert 0 < stop - start < 0.4 * log.head
        part = LogWindows.read(spec, day, from_us, to_us)
        at_us = np.sort(random.integers(from_us, to_us, 200))
        keys = pa.Table.from_pylist([asked(random) for _ in range(200)])
        for view in spec.views:
            values = part.values(view, keys, at_us)
            assert values.equals(whole.values(view, keys, at_us))
            assert any(pc.max(column).as_py() > 0 for column in values.columns)


def test_where_a_stretch_begins_is_checked_against_the_log_s_own_stamps(day: Path, spec: LineSpec):
    log = FileLog(day / "log" / "events", event_schema(spec))
    for minute in (0, 7, 299, 400):
        moment_us = T0 + minute * 60 * SECOND
        start, stop = offsets_between(day, log, moment_us, moment_us + 60 * SECOND)
        arrived = log.read(0, log.head)["arrival_at"].cast(pa.int64()).to_numpy()
        inside = np.flatnonzero((arrived >= moment_us) & (arrived < moment_us + 60 * SECOND))
        assert all(start <= offset < stop for offset in inside.tolist())
        assert np.all(arrived[:start] < moment_us)
    manifest = read_tick(day, 150)
    _commit(day, replace(manifest, at_us=manifest.at_us - 1))
    try:
        with pytest.raises(IntegrityError, match="do not fit the event log"):
            offsets_between(day, log, manifest.at_us - 1, manifest.at_us)
    finally:
        _commit(day, manifest)
