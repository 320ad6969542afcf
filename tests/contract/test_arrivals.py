"""What waits to be learned: counted from offsets, so a window that was refused waits no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace import records, turns
from headrace.arrivals import Arrivals
from headrace.atomic import write_json
from headrace.line import LineStore
from headrace.sample import TickManifest, head_tick
from headrace.settings import Settings, find_line, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"HEADRACE_HOME": str(tmp_path)})


def tick(settings: Settings, samples: int) -> None:
    home = settings.line_home("coupons")
    number = head_tick(home)
    made = TickManifest(number, number, (0, 0), (0, 0), None, None, {}, {"samples": samples})
    write_json(home / "ticks" / f"{number:08d}.json", made.to_json())


def promote(settings: Settings, to_tick: int) -> None:
    store = LineStore(settings.line_store_url("coupons"), "coupons")
    version = store.publish(
        {"w": np.zeros(2, np.float32)}, parent=None, from_tick=0, to_tick=to_tick, excluded=[],
        watermark_us=1, event_at_us=1, feature_service="coupons_v1", code="test", rows=0,
        metrics={},
    )  # fmt: skip
    store.advance(store.champion(), version.version, "promote", "test")


def ended(settings: Settings, started_us: int, interval: tuple[int, int] | None) -> None:
    cycle = records.started(f"run-{started_us}", "incremental")
    cycle = replace(cycle, interval=interval, outcome="rejected", reasons=("model gate",))
    records.record(settings, find_line(settings, "coupons"), cycle)


def test_samples_wait_from_the_end_of_what_was_looked_at(settings):
    arrivals = Arrivals(settings, find_line(settings, "coupons"))
    tick(settings, 5)
    assert arrivals.waiting() == 0  # nothing to continue yet
    promote(settings, to_tick=1)
    assert arrivals.waiting() == 0
    for samples in (3, 0, 4):
        tick(settings, samples)
    assert [arrivals.waiting(), arrivals.waiting()] == [7, 7]
    ended(settings, 100, (1, 3))
    assert arrivals.waiting() == 4
    ended(settings, 200, None)  # idle: it looked at no window
    assert arrivals.waiting() == 4
    promote(settings, to_tick=4)
    assert arrivals.waiting() == 0
    tick(settings, 9)
    assert arrivals.waiting() == 9
    assert Arrivals(settings, find_line(settings, "coupons")).waiting() == 9


def test_what_a_learner_takes_does_not_wait(settings):
    promote(settings, to_tick=0)
    tick(settings, 8)
    arrivals = Arrivals(settings, find_line(settings, "coupons"))
    turns.beat(settings.line_home("coupons"), {})
    assert arrivals.waiting() == 0
    turns.silence(settings.line_home("coupons"))
    assert arrivals.waiting() == 8
