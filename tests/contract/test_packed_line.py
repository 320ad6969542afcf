"""A line whose old parts are packed says what it said before, to everyone who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import catalog, packing, parts
from headrace.account import account
from headrace.ingest.online import catch_up
from headrace.ingest.service import import_history
from headrace.ingest.tick import TickState
from headrace.parity.history import FeastHistory, History, PartHistory
from headrace.sample import count_samples, head_tick, read_samples, sample_parts, ticks
from headrace.settings import Settings
from headrace.store import Store
from tests.campaign import SECOND, SPEC, Pushed, history

MOST = 5


def reads(settings: Settings, store: Store) -> dict[str, Any]:
    """What the readers of samples, fates and features find."""
    home = settings.line_home(SPEC.line)
    head, pushed = head_tick(home), Pushed()
    samples = read_samples(SPEC, home, 0, head)
    catch_up(TickState.restore(SPEC, home), pushed)
    sides = (FeastHistory(store, SPEC), PartHistory(SPEC, home, ticks(home)))
    joined = {
        f"{type(side).__name__} {view}": past(side, view, samples)
        for side in sides
        for view in SPEC.views
    }
    found = {
        "samples": samples,
        "streamed": pa.concat_tables(sample_parts(SPEC, home, 0, head)).combine_chunks(),
        "some": read_samples(SPEC, home, 3, head - 2, [(4, 6)], latest=True),
        "count": count_samples(home, 0, head),
        "account": account(settings, SPEC),
        "online": pushed.online,
        "newest": catalog.newest_rows(settings, SPEC, next(iter(SPEC.views)), 10_000),
    } | joined
    return {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    """Tables as lists in which a missing number equals another one."""
    if not isinstance(value, pa.Table):
        return value
    return [column.to_pandas().fillna("missing").tolist() for column in value.columns]


def past(side: History, view: str, samples: pa.Table) -> pa.Table:
    keys = samples.select([*SPEC.columns])
    at_us = samples["served_at"].cast(pa.int64()).to_numpy().astype(np.int64)
    return side.rows(view, keys, at_us).combine_chunks()


def folders(home: Path) -> list[Path]:
    return [home / "samples", home / "fates", *(home / "features" / view for view in SPEC.views)]


@pytest.mark.slow
def test_a_line_that_is_packed_says_what_it_said(settings: Settings) -> None:
    store = Store(settings)
    store.apply()
    import_history(settings, SPEC, history(40), SECOND, Pushed())
    home = settings.line_home(SPEC.line)
    head = head_tick(home)
    before = reads(settings, store)
    assert before["count"] > 500

    packed = packing.pack(home, head, keep=3, most=MOST)
    assert all(parts.listed(folder)[1] for folder in folders(home))
    assert reads(settings, store) == before  # every row is there twice

    later = max(path.stat().st_mtime for path in home.rglob("b=*-*.parquet"))
    later += packing.GRACE.total_seconds() + 1
    assert packing.pack(home, head, keep=3, most=MOST, now_s=later).removed == packed.packs * MOST
    assert all(len(parts.listed(folder)[0]) < head // 2 for folder in folders(home))
    assert reads(settings, store) == before
