"""docs/results.md: demos side by side, faults with what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace import results
from tests.faults.told import accounted

REPORT: dict[str, Any] = {
    "staleness_s": {"p50": 40.0, "p95": 60.0, "max": 70.0, "stages": {}},
    "logloss": {"served": 0.33, "frozen_base": 0.34, "oracle": 0.28},
    "click_rate": {"served": 0.1, "frozen_base_estimate": 0.09, "oracle": 0.15},
    "cycles": {"run": 8, "promoted": 6, "rejected": 2},
    "serving": {"requests": 100, "errors": 0, "p50_ms": 20.0, "p99_ms": 50.0},
    "events": dict.fromkeys(
        ("appended", "learned", "pending", "quarantined", "malformed", "lost"), 1
    ),
    "parity": {"rows": 10, "mismatches": 0},
    "rollback_ms": None,
    "checks": [{"name": "no event lost", "found": "0 of 1", "holds": True}],
}


def written(out: Path) -> str:
    assert results.write(out / "results.md", out)
    return (out / "results.md").read_text(encoding="utf-8")


def test_demos_of_two_profiles_stand_side_by_side(tmp_path: Path) -> None:
    other = REPORT | {
        "cycles": {"run": 5, "promoted": 4, "rejected": 1},
        "checks": [{"name": "no event lost", "found": "3 of 9", "holds": False}],
    }
    for name, report in (("demo", REPORT), ("demo-services", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
    text = written(tmp_path)
    assert "`make demo` and `make demo PROFILE=services`, one run each" in text
    assert "| claim | local | services |" in text
    assert "| no event lost | 0 of 1: holds | 3 of 9: does not hold |" in text
    assert "| cycles run, promoted, rejected | 8, 6, 2 | 5, 4, 1 |" in text


def test_a_fault_says_what_it_cost_where_it_was_measured(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    plain = {"what": "a SIGKILL", "command": "pytest x", "kills": 3, "end": "equal"}
    plain["stages"] = {"here": 2, "there": 1}
    counted = plain | {"what": "a cut", "recovered_s": {"median": 0.51, "max": 2}}
    counted |= {"lost": 0, "duplicated": 0, "repeated": {"unit": "ticks", "all": 7, "most": 4}}
    for name, told in (("a", plain), ("b", counted)):
        (tmp_path / "faults" / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
    text = written(tmp_path)
    assert "| a SIGKILL (`pytest x`) | 3 | here 2, there 1 | - | - | - | - | equal |" in text
    cost = "0.5, 2.0 s | 7, 4 ticks | 0 | 0"
    assert f"| a cut (`pytest x`) | 3 | here 2, there 1 | {cost} | equal |" in text
    assert "Kills by SIGKILL in all: 3." in text


def drilled(line: str, window_s: int, click_rate: float | None) -> dict[str, Any]:
    usual = {"logloss": 0.5, "click_rate": click_rate}
    flood = {"drill": "flood", "caught_by": "data gate", "seconds": window_s, "rows": 1_234}
    flood |= {"through": 1, "undone": 1, "logloss": 0.6, "click_rate": click_rate}
    ways = ("all", "no data gate", "none")
    alarms = {"data gate": 1, "model gate": 0}
    clean = {"windows": 200, "windows_with_alarm": 1, "false_alarm_share": 0.005}
    clean |= {"false_alarms": alarms, "judged": 199, "promoted_share": 1.0}
    return {
        "line": line,
        "seed": 7,
        "window_s": window_s,
        "poisoned_windows": 6,
        "after_windows": 6,
        "what": {"flood": "too much of it"},
        "clean_minutes": dict.fromkeys(ways, usual),
        "drills": [flood | {"defence": way} for way in ways],
        "clean": clean | {"reasons": ["2013-03-09 data gate: odd"] if click_rate is None else []},
    }


def test_each_line_that_was_drilled_has_its_table(tmp_path: Path) -> None:
    (tmp_path / "drills").mkdir()
    flights = drilled("flights", 86_400, None) | {"from": "2013-02-15"}
    for told in (drilled("coupons", 30, 0.1), flights):
        path = tmp_path / "drills" / f"{told['line']}.json"
        path.write_text(json.dumps(told), encoding="utf-8")
    coupons, flown = written(tmp_path).split("Line `flights`")
    assert "| log loss and click rate, gates on | gates off |" in coupons
    row = "| flood: too much of it | data gate | {} | 0 | data gate | {} | {} |"
    harm = "+0.1000, +0.0000"
    assert row.format("30 s, 1,234 rows", harm, harm) in coupons
    assert "6 d of poison from 2013-02-15 in windows of 1 d, then 6 clean windows." in flown
    assert "| log loss, gates on | gates off |" in flown
    assert row.format("1 d, 1,234 rows", "+0.1000", "+0.1000") in flown
    assert "200 windows, 1 of them with an alarm (0.5%; data gate 1, model gate 0)" in flown
    assert "- 2013-03-09 data gate: odd" in flown


def test_lost_and_duplicated_are_counted() -> None:
    assert accounted([0, 1, 2], 3) == {"lost": 0, "duplicated": 0}
    assert accounted([0, 2, 2, 2], 4) == {"lost": 2, "duplicated": 2}
    assert accounted([], 2) == {"lost": 2, "duplicated": 0}
