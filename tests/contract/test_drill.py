"""Drills end to end: the gates meet the poison, and `headrace results` prints what they did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace import results
from headrace.drill import run as drills
from headrace.errors import InputError
from headrace.settings import PROJECT, load_line

SPEC = load_line(PROJECT / "lines" / "coupons.yaml")


@pytest.mark.slow
def test_poison_is_met_and_told(tmp_path: Path) -> None:
    only = ["NaN in the model", "clicks stop"]
    told = drills.run(SPEC, clean_windows=4, only=only)
    found = {(each["drill"], each["defence"]): each for each in told["drills"]}
    broken = found["NaN in the model", "all"]
    assert (broken["caught_by"], broken["through"]) == ("model gate", 0)
    assert "weights_finite" in broken["reason"]
    stopped = found["clicks stop", "all"]
    assert (stopped["caught_by"], stopped["through"]) == ("data gate", 0)
    assert found["clicks stop", "none"]["through"] == drills.POISONED
    assert found["clicks stop", "none"]["caught_by"] == "vitals"
    assert told["clean"]["windows"] == 4
    (tmp_path / "out" / "drills").mkdir(parents=True)
    (tmp_path / "out" / "drills" / "coupons.json").write_text(json.dumps(told))
    document = tmp_path / "results.md"
    assert results.write(document, tmp_path / "out") == ["drills"]
    assert "| NaN in the model: a weight of the candidate is NaN | model gate |" in (
        document.read_text()
    )


def test_an_unknown_drill_is_named() -> None:
    with pytest.raises(InputError, match="'flood': no such drill; there are: flipped labels"):
        drills.run(SPEC, only=["flood"])
