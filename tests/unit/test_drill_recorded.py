"""A tiny recording on the drills' stage: each flight asked at its moment, told when it landed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.declaration import LineSpec
from headrace.drill.lines import DAY_S, DRILLS, drill_of, stage_of
from headrace.drill.poison import CLEAN, Poison
from headrace.drill.recorded import Recorded
from headrace.drill.stage import Seen
from headrace.errors import InputError
from headrace.events import micros
from headrace.settings import PROJECT, load_line
from headrace.source import read_events

HEAD = (
    "year,month,day,dep_time,dep_delay,arr_time,arr_delay,carrier,tailnum,flight,origin,dest,"
    "air_time,distance,hour,minute,late"
)
A_DAY = 60
DIVERTED = 7
START_US = micros(datetime(2013, 1, 1, 8, tzinfo=UTC))  # three in the morning in New York


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "flights.yaml")


def _rows() -> Iterator[str]:
    """Three days of flights, one each quarter of an hour from 6:00; those of AA are late."""
    for day in (1, 2, 3):
        for n in range(A_DAY):
            hour, minute = 6 + n // 4, 15 * (n % 4)
            carrier = ("AA", "UA", "B6")[n % 3]
            late = int(carrier == "AA")
            landed = "" if n == DIVERTED else str(40 * late)
            yield (
                f"2013,1,{day},{hour}{minute:02d},0,,{landed},{carrier},N{n % 9},{n},"
                f"{('EWR', 'JFK')[n % 2]},BOS,90,{200 + n},{hour},{minute},{late}"
            )


@pytest.fixture(scope="module")
def events(spec: LineSpec, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    data = tmp_path_factory.mktemp("data")
    (data / "nycflights13").mkdir()
    text = "\n".join([HEAD, *_rows()]) + "\n"
    (data / "nycflights13" / "flights_derived.csv.gz").write_text(text)  # gzip is told by content
    return read_events(spec, data)[0]


def recorded(spec: LineSpec, events: pa.Table) -> Recorded:
    return Recorded(spec, events, 7, begins_h=3)


def named(name: str) -> Poison:
    return next(poison for poison in DRILLS["flights"].poisons if poison.name == name)


def hour_of(vectors: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A model that tells which row it answered."""
    return vectors["scheduled_minute"].to_numpy() / 1440


def test_a_day_is_what_was_recorded_of_it(spec: LineSpec, events: pa.Table) -> None:
    stage = recorded(spec, events)
    assert (stage.at_us, stage.day, stage.ranks) == (START_US, "2013-01-01", False)
    seen = stage.play(DAY_S, hour_of, "v1")
    assert stage.day == "2013-01-02"
    assert (seen.vitals.events, seen.vitals.engagements) == (2 * A_DAY - 1, A_DAY - 1)
    assert seen.samples.num_rows == seen.happened.size == A_DAY - 1  # one never landed
    late = np.array(seen.samples["carrier"].to_pylist()) == "AA"
    np.testing.assert_array_equal(seen.samples["label"].to_numpy() > 0, late)
    assert sorted(seen.samples["score"].to_pylist()) == sorted(seen.scores.tolist())
    assert set(seen.samples["version"].to_pylist()) == {"v1"}


def test_a_flight_is_answered_from_what_had_landed_before_it(
    spec: LineSpec, events: pa.Table
) -> None:
    seen = recorded(spec, events).play(DAY_S, None, "v1")
    by_minute = seen.samples.sort_by("scheduled_minute")
    counted = by_minute["origin_departures_count_1h"].to_pylist()
    assert counted[:6] == [0, 0, 1, 1, 2, 2]  # every other flight, the hour before
    landed = by_minute["carrier_outcomes_count_6h"].to_numpy()
    left = by_minute["scheduled_minute"].to_numpy()
    assert not landed[left < 360 + 90].any()  # a flight takes 90 minutes
    assert landed[left > 360 + 150].all()


def test_two_days_are_the_day_and_the_next(spec: LineSpec, events: pa.Table) -> None:
    whole, parts = recorded(spec, events), recorded(spec, events)
    twice = pa.concat_tables([parts.play(DAY_S, hour_of, "v").samples for _ in range(2)])
    assert twice.equals(whole.play(2 * DAY_S, hour_of, "v").samples)


def test_the_recording_ends(spec: LineSpec, events: pa.Table) -> None:
    stage = recorded(spec, events)
    assert stage.lasts(3 * DAY_S)
    assert not stage.lasts(4 * DAY_S)
    stage.play(3 * DAY_S, None, "v")
    assert not stage.lasts(1)


def test_a_copy_plays_on_by_itself(spec: LineSpec, events: pa.Table) -> None:
    stage = recorded(spec, events)
    stage.play(DAY_S, None, "v")
    spoiled, sound = stage.copy(), stage.copy()
    spoiled.play(DAY_S, hour_of, "v", named("outcomes stop"))
    told = [each.play(DAY_S, hour_of, "v").samples for each in (sound, stage)]
    assert told[0].equals(told[1])


Days = Callable[[str], Seen]


@pytest.fixture(scope="module")
def second_day(spec: LineSpec, events: pa.Table) -> Days:
    """A second day under a poison, or a clean one under none: each is played once."""
    first = recorded(spec, events)
    first.play(DAY_S, None, "base")

    @cache
    def day(name: str) -> Seen:
        return first.copy().play(DAY_S, hour_of, "v", named(name) if name else CLEAN)

    return day


def both(second_day: Days, name: str) -> tuple[pa.Table, pa.Table, float]:
    """Samples of a second day, clean and poisoned, and the share of outcomes that were lost."""
    clean, spoiled = second_day(""), second_day(name)
    np.testing.assert_array_equal(clean.happened, spoiled.happened)
    return clean.samples, spoiled.samples, spoiled.vitals.lost_share


def test_labels_are_flipped_where_there_are_some(second_day: Days) -> None:
    clean, spoiled, _ = both(second_day, "flipped labels")
    assert spoiled["impression_id"].equals(clean["impression_id"])
    assert pc.all(pc.not_equal(spoiled["label"], clean["label"])).as_py()


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("stuck feature", "origin"),
        ("unit change", "distance"),
        ("unit change x100", "distance"),
        ("null burst", "tailnum"),
        ("label leak", "distance"),
    ],
)
def test_a_column_is_spoiled_and_no_other(
    spec: LineSpec, second_day: Days, name: str, column: str
) -> None:
    clean, spoiled, _ = both(second_day, name)
    differ = [
        other
        for other in spec.columns
        if spoiled.sort_by("impression_id")[other] != clean.sort_by("impression_id")[other]
    ]
    assert differ == [column]


def test_what_is_spoiled_how(second_day: Days) -> None:
    assert set(both(second_day, "stuck feature")[1]["origin"].to_pylist()) == {"EWR"}
    nulls = both(second_day, "null burst")[1]["tailnum"]
    assert 0.4 < nulls.null_count / len(nulls) < 0.8
    leak = both(second_day, "label leak")[1]
    told = leak["distance"].to_numpy() == 6000
    np.testing.assert_array_equal(told, leak["label"].to_numpy() > 0)


def test_wrong_clocks_lose_outcomes(second_day: Days) -> None:
    assert both(second_day, "")[2] == 0
    assert both(second_day, "timezone slip")[2] == 1  # all land within five hours
    assert 0.3 < both(second_day, "clock skew")[2] < 0.7


def test_what_stops_is_not_there(second_day: Days) -> None:
    for name in ("outcomes stop", "source stop", "schema change"):
        assert both(second_day, name)[1].num_rows == 0, name


def test_a_line_without_drills_or_data_is_told_so(spec: LineSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --data the folder"):
        stage_of(spec, 7, None)
    with pytest.raises(InputError, match=r"nowhere: no such data folder; give --data the folder"):
        stage_of(spec, 7, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"flights_derived.csv.gz: no such file below"):
        stage_of(spec, 7, tmp_path)
    with pytest.raises(InputError, match="'other' has no drills; there are some for: coupons, fli"):
        drill_of(spec.model_copy(update={"line": "other"}))
