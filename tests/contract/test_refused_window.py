"""A refused window: only what is new is refused, its rows are kept, a person can decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace import alarms, cycle, quality, recent
from headrace.atomic import write_json
from headrace.errors import InputError
from headrace.sample import Quarantine, read_tick
from tests.contract.written_line import Line


def test_only_what_is_new_is_refused_and_the_rest_is_learned_at_once(line: Line) -> None:
    line.tick(6, version="v000001")
    assert cycle.check_data(line.settings, line.spec, 34, 46).passed
    line.tick(3, click=np.ones_like, version="v000001")
    report = cycle.check_data(line.settings, line.spec, 34, 49)
    quarantine = Quarantine(line.home)
    (refused,) = quarantine.intervals()
    # of the last 10 s before, only clicks had come
    assert (refused["from"], refused["to"]) == (36, 49)
    assert "label rate" in str(refused["reasons"])
    assert Path(quarantine.show(36, 49)["docs"]).is_file()
    (alarm,) = alarms.alarms(line.settings, "tiny")
    assert (alarm["kind"], alarm["ticks"]) == ("quarantine", [36, 49])
    assert (report.passed, report.statistics["rows"]) == (True, 2 * 50)
    assert quality.passed(line.home, 34, 49, [[36, 49]])


def test_what_is_left_of_a_refused_window_waits_where_it_is_too_little(line: Line) -> None:
    assert cycle.check_data(line.settings, line.spec, 37, 40).passed
    line.tick(3, click=np.ones_like, version="v000001")
    report = cycle.check_data(line.settings, line.spec, 37, 43)
    assert "label rate" in str(report.reasons)
    (refused,) = Quarantine(line.home).intervals()
    assert (refused["from"], refused["to"]) == (37, 43)


def test_rows_and_page_of_a_refused_window_are_kept(line: Line) -> None:
    line.tick(6, click=np.ones_like, version="v000001")
    report = cycle.check_data(line.settings, line.spec, 34, 46)
    quarantine = Quarantine(line.home)
    shown = quarantine.show(34, 46)
    assert shown["reasons"] == report.reasons
    assert {row["rule"] for row in shown["rows"]} == {"label rate of a stretch of impressions"}
    assert "label rate" in str(report.reasons)
    assert Path(shown["docs"]).is_file()
    assert list(Path(shown["docs"]).parent.rglob("validations/**/*.html"))
    quarantine.drop(34, 46)
    assert "dropped_at" in quarantine.show(34, 46)
    assert quarantine.show(34, 46)["rows"] == []
    with pytest.raises(InputError, match="34-46: was dropped, which is for good"):
        quarantine.release(34, 46)
    assert len(quarantine.intervals()) == 1
    with pytest.raises(InputError, match="quarantine 1-2: no such interval; quarantined are"):
        quarantine.show(1, 2)


def test_a_source_that_falls_silent_is_told_of_once(line: Line) -> None:
    for tick in range(20, 40):  # a lively past; the manifests say how many events each had
        body = {**read_tick(line.home, tick).to_json()}
        body["counts"] = {"events": 400, "positives": 40, "samples": 50}
        write_json(line.home / "ticks" / f"{tick:08d}.json", body)
    at_us = read_tick(line.home, 39).at_us
    spec = line.spec.model_copy(
        update={"cadence": line.spec.cadence.model_copy(update={"incremental": 4_000_000})}
    )
    assert recent.symptoms(spec, line.home, at_us) == []
    for silent_us in (10_000_000, 86_400_000_000):
        told = recent.symptoms(spec, line.home, at_us + silent_us)
        assert [each.split(":")[0] for each in told] == ["volume", "volume"]
    for _ in range(2):  # the ticks lie years back
        assert cycle.look_at_source(line.settings, spec)
    (alarm,) = alarms.alarms(line.settings, "tiny")
    assert alarm["kind"] == "source"
    assert recent.vitals(spec, line.home, 36, 40).events == 1_600
    assert recent.rows_before(spec, line.home, 30).num_rows == 30 * 50
