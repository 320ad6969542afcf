"""Poisons that follow each other while a stack runs, and the minutes that kept the objective."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from bench import _drilled
from bench._drilled import MINUTE_US, Drilling, minutes
from headrace.settings import load_settings
from headrace.simulate.poison import POISONS, PoisonSwitch
from headrace.simulate.truth import SCHEMAS


def test_poisons_take_turns_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(_drilled.time, "monotonic", lambda: clock[0])
    switch = PoisonSwitch(load_settings({"HEADRACE_HOME": str(tmp_path)}), "coupons")
    drilling, seen = Drilling(switch), []
    for at_s in (0, 299, 300, 310, 320, 899, 900, 921):
        clock[0] = float(at_s)
        drilling.step()
        seen.append(switch.read())
    assert seen == [None, None, POISONS[0], POISONS[0], None, None, POISONS[1], None]
    assert [each["name"] for each in drilling.done] == list(POISONS[:2])
    assert all(each["to_us"] >= each["from_us"] for each in drilling.done)


def test_a_minute_is_good_only_when_every_answer_is_fresh_and_none_failed() -> None:
    asked = [(0, 200, 30.0), (1, 200, 119.0), (1, 200, 121.0), (2, 503, None), (4, 200, 5.0)]
    rows = [
        {
            "request_id": str(number), "started_at": minute * MINUTE_US + 5, "latency_ms": 1.0,
            "status": status, "version": None, "staleness_s": stale,
        }
        for number, (minute, status, stale) in enumerate(asked)
    ]  # fmt: skip
    requests = pa.Table.from_pylist(rows, schema=SCHEMAS["requests"])
    assert minutes(requests, 0, 5 * MINUTE_US + 7) == {"minutes": 5, "bad": [1, 2, 3]}
