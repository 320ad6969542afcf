from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.declaration import LineSpec
from headrace.demo.drills import POISON_US, Drills
from headrace.settings import PROJECT, load_line, load_settings
from headrace.simulate.outbox import now_us
from headrace.simulate.poison import PoisonSwitch
from headrace.simulate.truth import read_json

S = 1_000_000
STATE = {"weights": np.zeros(4, dtype=np.float32)}


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "coupons.yaml")


@pytest.fixture
def drills(spec: LineSpec, tmp_path: Path) -> Drills:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    (settings.line_home(spec.line) / "truth").mkdir(parents=True)
    return Drills(settings, spec, now_us() - 1, lambda _text: None)


def _promote(drills: Drills, cut_us: int) -> None:
    """A version whose window ended at `cut_us`, promoted now."""
    store, home = drills.store, drills.settings.line_home(drills.spec.line)
    champion = store.champion()
    tick = len(store.versions())
    _write_tick(home, tick, cut_us)
    known: dict[str, Any] = {"from_tick": tick, "to_tick": tick + 1, "excluded": [], "rows": 1}
    known |= {"watermark_us": cut_us, "event_at_us": cut_us, "feature_service": "s", "code": "c"}
    parent = champion.version if champion else None
    version = store.publish(STATE, parent=parent, metrics={}, **known)
    store.advance(champion, version.version, "promote", "test")


def _write_tick(home: Path, tick: int, at_us: int) -> None:
    files: dict[str, Any] = {"samples": None, "fates": None, "features": {}}
    body = {"tick": tick, "at_us": at_us, "events": [0, 1], "served": [0, 1], "counts": {}}
    path = home / "ticks" / f"{tick:08d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**body, "files": files}))


def _flipped(drills: Drills) -> bool:
    return PoisonSwitch(drills.settings, drills.spec.line).read() is not None


def test_the_poison_waits_for_two_promotions(drills: Drills) -> None:
    _promote(drills, now_us() - 31 * S)
    drills.step()
    assert not _flipped(drills)


def test_the_poison_comes_after_the_second_promotion(drills: Drills) -> None:
    for age_s in (61, 31, 1):
        _promote(drills, now_us() - age_s * S)
    drills.step()
    assert _flipped(drills)
    poison = drills.record["poison"]
    assert poison["to_us"] - poison["from_us"] == POISON_US
    home = drills.settings.line_home(drills.spec.line)
    assert read_json(home / "truth" / "drills.json")["poison"] == poison


def test_the_poison_ends_by_itself_and_ending_it_twice_is_harmless(drills: Drills) -> None:
    for age_s in (61, 31, 1):
        _promote(drills, now_us() - age_s * S)
    drills.step()
    drills._poison_end_us = now_us()
    drills.step()
    assert not _flipped(drills)
    ended = drills.record["poison"]["to_us"]
    drills.end_poison()
    assert drills.record["poison"]["to_us"] == ended


def test_nothing_is_rolled_back_before_the_poison_was_refused(drills: Drills) -> None:
    for age_s in (61, 31, 1):
        _promote(drills, now_us() - age_s * S)
    drills.record["poison"] = {"from_us": now_us(), "to_us": now_us()}
    _promote(drills, now_us())
    drills.step()
    assert "rollback" not in drills.record
    assert not drills.done
