"""Drills end to end: the gates meet the poison, and `headrace results` prints what they did."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from headrace import cli, results
from headrace.drill import run as drills
from headrace.errors import InputError
from headrace.settings import PROJECT, load_line

SPEC = load_line(PROJECT / "lines" / "coupons.yaml")
FLIGHTS = load_line(PROJECT / "lines" / "flights.yaml")
DATA = Path(os.environ.get("HEADRACE_TEST_DATA", PROJECT.parent / "shared" / "data"))


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


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")
def test_poison_is_met_on_real_flights() -> None:
    only = ["flipped labels", "clock skew"]
    told = drills.run(FLIGHTS, clean_windows=2, data=DATA, only=only, defences=["all"])
    assert (told["window_s"], told["from"]) == (86_400, "2013-02-15")
    learned = {drill["drill"]: drill["through"] for drill in told["drills"]}
    assert learned["clock skew"] == 0
    assert learned["flipped labels"] < drills.POISONED  # the first day is refused
    for drill in told["drills"]:
        assert (drill["caught_by"], drill["seconds"]) == ("data gate", 86_400), drill["drill"]
        assert drill["rows"] > 500
        assert drill["click_rate"] is None
    untouched = told["clean_minutes"]["all"]
    assert (untouched["caught_by"], untouched["promoted"]) == (None, 12)
    assert 0.3 < untouched["logloss"] < 0.55
    assert told["clean"]["windows"] == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "line 'flights' is drilled on recorded files; give --data the folder"),
        (["--data", "nowhere"], "nowhere: no such data folder; give --data the folder of the"),
    ],
)
def test_flights_without_their_data_are_refused(
    given: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["headrace", "drill", "--line", "flights", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == InputError.exit_code
    assert words in capsys.readouterr().err
