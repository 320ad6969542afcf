"""Conversions join the clicks of their impressions: labels, corrections, fates, any split alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.declaration import LineSpec
from headrace.events import event_schema, sample_schema, served_schema
from headrace.labels.revisions import newest, once, thin_negatives, unlearned
from headrace.labels.state import FATES, LabelState, fates_of
from headrace.train import code_of
from tests.unit.label_oracle import oracle as oracle_of_clicks

SECOND = 1_000_000
HORIZON_S, CLICK_S, CONVERSION_S = 15, 10, 30
GRACE_S = HORIZON_S - CLICK_S


def line(label: dict[str, Any] | None = None, **conversion: Any) -> LineSpec:
    wait = {"attribution_window": "10s", "provisional_after": "3s"}
    after = {"engagement": "buy", "attribution_window": "30s", **conversion}
    return LineSpec.model_validate(
        {
            "line": "shop",
            "columns": {"user": "string"},
            "source": {"kind": "live"},
            "label": {"engagement": "click", **wait, "conversion": after, **(label or {})},
            "request_features": [{"name": "user_id", "kind": "hash", "of": "user"}],
            "model": {"categorical": ["user_id"]},
        }
    )


SPEC = line()
Event = dict[str, Any]


def event(name: str, which: str, arrival: float, event_at: float | None = None) -> Event:
    return {
        "event": name,
        "impression_id": which,
        "event_at": int((arrival if event_at is None else event_at) * SECOND),
        "arrival_at": int(arrival * SECOND),
        "value": int(name != "impression"),
    }


def vector(which: str, served_at: float) -> Event:
    scores = {"score": 0.5, "conversion_score": 0.25, "click_and_conversion_score": 0.125}
    names = {"impression_id": which, "request_id": which, "version": "v1", "user": which}
    return {**names, **scores, "served_at": int(served_at * SECOND), "user_id": 7}


class Ran:
    """Everything that a sequence of ticks said; each tick reads what arrived before it."""

    def __init__(
        self, events: Sequence[Event], served: Sequence[Event], ticks: Sequence[float],
        spec: LineSpec = SPEC, restart: bool = False,
    ) -> None:  # fmt: skip
        state = LabelState(spec, HORIZON_S * SECOND)
        log = pa.Table.from_pylist(list(events), schema=event_schema(spec))
        log = log.append_column("offset", pa.array(np.arange(log.num_rows)))
        vectors = pa.Table.from_pylist(list(served), schema=served_schema(spec))
        self.parts, self.fates, self.resolved = [sample_schema(spec).empty_table()], {}, []
        read = seen = 0
        for at_us in (int(second * SECOND) for second in ticks):
            stop = sum(row["arrival_at"] < at_us for row in events)
            until = sum(row["served_at"] < at_us for row in served)
            self.resolved += state.resolve(log.slice(read, stop - read)).to_pylist()
            emitted = state.emit(vectors.slice(seen, until - seen), at_us)
            self.parts.append(emitted.samples)
            for row in emitted.fates.to_pylist():
                assert row["offset"] not in self.fates
                self.fates[row["offset"]] = row["fate"]
            read, seen = stop, until
            self._exactly_one_place(state, read)
            if restart:
                before = state.checkpoint()
                state = LabelState.restore(spec, before, lambda a, b: vectors.slice(a, b - a))
                after = state.checkpoint()
                assert all(after[name].equals(before[name]) for name in before)

    @property
    def samples(self) -> pa.Table:
        return pa.concat_tables(self.parts).combine_chunks()

    def _exactly_one_place(self, state: LabelState, read: int) -> None:
        rows = self.samples.to_pylist()
        found = [*self.fates, *state.pending_offsets().tolist()]
        found += [row["impression_offset"] for row in rows if row["revision"] == 0]
        for name in ("engagement_offset", "conversion_offset"):
            found += [row[name] for row in rows if row[name] >= 0]
        assert sorted(found) == list(range(read))

    def rows(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(row[name] for name in names) for row in self.samples.to_pylist()]

    def net(self) -> dict[int, tuple[float, ...]]:
        """The four weights of each impression, all its rows added."""
        total: dict[int, Any] = {}
        for offset, *weights in self.rows("impression_offset", *WEIGHTS):
            total[offset] = total.get(offset, np.zeros(4)) + weights
        return {offset: tuple(weights.tolist()) for offset, weights in total.items()}

    def conversions(self) -> dict[int, int]:
        pairs = self.rows("impression_offset", "conversion_offset")
        return {impression: offset for impression, offset in pairs if offset >= 0}


WEIGHTS = (
    "positive_weight",
    "negative_weight",
    "conversion_positive_weight",
    "conversion_negative_weight",
)
SHOWN = event("impression", "a", 1)
SERVED = [vector("a", 0.5)]


def test_a_conversion_hours_after_its_click_corrects_the_zero():
    ran = Ran([SHOWN, event("click", "a", 2), event("buy", "a", 31)], SERVED, (2.5, 9, 31.5))
    assert ran.rows("revision", "label", "conversion", *WEIGHTS) == [
        (0, 1, 0, 1, 0, 0, 1),
        (1, 1, 1, 0, 0, 1, -1),
    ]
    assert ran.rows("engagement_offset", "conversion_offset") == [(1, -1), (-1, 2)]
    assert (
        ran.rows("score", "user_id", "event_at")[0] == ran.rows("score", "user_id", "event_at")[1]
    )
    assert ran.net() == {0: (1, 0, 1, 0)}


def test_a_negative_is_corrected_by_its_click_and_then_by_its_conversion():
    ran = Ran([SHOWN, event("click", "a", 9), event("buy", "a", 20)], SERVED, (5, 10, 21))
    assert ran.rows("revision", "label", "conversion", *WEIGHTS) == [
        (0, 0, 0, 0, 1, 0, 1),
        (1, 1, 0, 1, -1, 0, 0),
        (2, 1, 1, 0, 0, 1, -1),
    ]
    assert newest(ran.samples).select(["revision", *WEIGHTS]).to_pylist() == [
        dict(zip(("revision", *WEIGHTS), (2, 1, 0, 1, 0), strict=True))
    ]


def test_click_and_conversion_known_together_are_one_row():
    both = [event("click", "a", 2), event("buy", "a", 2.1)]
    assert Ran([SHOWN, *both], SERVED, (3,)).rows(*WEIGHTS) == [(1, 0, 1, 0)]
    late = [event("click", "a", 9), event("buy", "a", 9.5)]
    ran = Ran([SHOWN, *late], SERVED, (5, 10))
    assert ran.rows(*WEIGHTS) == [(0, 1, 0, 1), (1, -1, 1, -1)]


def test_a_conversion_may_arrive_before_its_click_and_before_its_impression():
    log = [event("buy", "a", 1, 4), event("click", "a", 2, 3), event("impression", "a", 3, 2)]
    ran = Ran(log, [vector("a", 1.5)], (2.5, 3.5))
    assert ran.rows("label", "conversion", "conversion_offset") == [(1, 1, 0)]


@pytest.mark.parametrize(
    ("lag", "fate"),
    [(-0.000001, "conversion_before_click"), (0, None), (29.999999, None), (30, "too_late")],
)
def test_the_window_is_half_open_and_counts_from_the_click(lag, fate):
    ran = Ran([SHOWN, event("click", "a", 2), event("buy", "a", 32, 2 + lag)], SERVED, (3, 33))
    assert ran.fates.get(2) == fate
    assert ran.conversions() == ({0: 2} if fate is None else {})


def test_what_cannot_be_a_conversion_is_counted_not_learned():
    log = [
        SHOWN, event("impression", "b", 1), event("click", "a", 2), event("buy", "a", 3),
        event("buy", "a", 4), event("buy", "b", 4), event("buy", "x", 4),
    ]  # fmt: skip
    ran = Ran(log, [*SERVED, vector("b", 0.6)], (5, 18.9, 19))
    assert ran.fates == {
        4: "duplicate_conversion",
        5: "unclicked_conversion",
        6: "unclicked_conversion",
    }
    assert ran.net()[1] == (0, 1, 0, 1)  # bought, but never seen clicked


def test_a_conversion_of_what_was_never_served_ends_with_it():
    log = [SHOWN, event("click", "a", 2), event("buy", "a", 3), event("buy", "a", 20)]
    assert Ran(log, [], (4, 16, 21)).fates == {
        0: "unserved", 1: "unserved", 2: "unserved", 3: "duplicate_conversion",
    }  # fmt: skip
    later = [SHOWN, event("click", "a", 2), event("buy", "a", 20)]
    assert Ran(later, [], (16, 21)).fates == dict.fromkeys(range(3), "unserved")


def test_an_idle_tick_is_due_when_a_conversion_has_waited_long_enough():
    state = LabelState(SPEC, HORIZON_S * SECOND)
    log = pa.Table.from_pylist([event("buy", "a", 1)], schema=event_schema(SPEC))
    state.resolve(log.append_column("offset", pa.array([0])))
    assert [state.due(int(us)) for us in (15.9e6, 16e6)] == [False, True]


times = st.integers(0, 70)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """Few ids over several horizons: repeats, ties, every order, missing and late vectors."""
    rows = []
    for arrival in sorted(draw(st.lists(times, max_size=30))):
        name = draw(st.sampled_from(["impression", "click", "click", "buy", "buy"]))
        back = draw(st.integers(-3, 18))
        rows.append(event(name, draw(st.sampled_from("abc")), arrival, max(arrival - back, 0)))
    seconds = sorted(draw(st.lists(times, max_size=15)))
    return rows, [vector(draw(st.sampled_from("abc")), second) for second in seconds]


def oracle(events: list[Event], clicks: dict[int, int]) -> tuple[dict[int, str], dict[int, int]]:
    """Fates and impressions of conversions, offset by offset, from the attributed clicks."""
    opened = []
    for impression, click in clicks.items():
        shown, clicked = events[impression], events[click]
        known_s = max(shown["arrival_at"], clicked["arrival_at"]) / SECOND
        close_s = max(known_s, clicked["event_at"] / SECOND) + CONVERSION_S + GRACE_S
        opened.append((max(impression, click), impression, clicked, known_s, close_s))
    opened.sort(key=lambda item: item[0])
    asked = []
    fates: dict[int, str] = {}
    for offset, row in enumerate(events):
        if row["event"] != "buy":
            continue
        at_s = row["arrival_at"] / SECOND
        mine = [item for item in opened if item[2]["impression_id"] == row["impression_id"]]
        before = [item for item in mine if item[0] < offset][-1:]
        found = [item for item in before if at_s < item[4]]
        found += [item for item in mine if item[0] > offset and item[3] < at_s + HORIZON_S]
        if not found:
            fates[offset] = "unclicked_conversion"
        else:
            asked.append((max(offset, found[0][0]), offset, found[0]))
    converted: dict[int, int] = {}
    for _, offset, (_, impression, clicked, _, _) in sorted(asked, key=lambda item: item[:2]):
        lag_s = (events[offset]["event_at"] - clicked["event_at"]) / SECOND
        if not 0 <= lag_s < CONVERSION_S:
            fates[offset] = "conversion_before_click" if lag_s < 0 else "too_late"
        elif impression in converted:
            fates[offset] = "duplicate_conversion"
        else:
            converted[impression] = offset
    return fates, converted


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(logs(), st.lists(times, max_size=8), st.booleans())
def test_any_split_into_ticks_ends_in_the_labels_of_the_oracle(log, cuts, restart):
    events, vectors = log
    whole, split = (
        Ran(events, vectors, ticks, restart=restart) for ticks in ([300], [*sorted(set(cuts)), 300])
    )
    assert split.net() == whole.net()
    assert split.conversions() == whole.conversions()
    assert split.fates == whole.fates
    assert split.resolved == whole.resolved
    assert set(whole.net().values()) <= {(0, 1, 0, 1), (1, 0, 0, 1), (1, 0, 1, 0)}
    assert set(whole.fates.values()) <= set(fates_of(SPEC))
    attributed = _attributed(events)
    fates, converted = oracle(events, attributed)
    buys = {offset for offset, row in enumerate(events) if row["event"] == "buy"}
    found = {offset: whole.fates[offset] for offset in buys & whole.fates.keys()}
    unserved = {offset for offset, fate in found.items() if fate == "unserved"}
    assert {offset: fate for offset, fate in found.items() if fate != "unserved"} == fates
    assert {*whole.conversions().values()} | unserved == {*converted.values()}
    assert whole.conversions().items() <= converted.items()


def _attributed(events: list[Event]) -> dict[int, int]:
    """The click of each impression that has one, by the oracle of the clicks' own tests."""
    names = [row["event"] for row in events]
    offsets = [offset for offset, name in enumerate(names) if name != "buy"]
    _, engaged = oracle_of_clicks([events[offset] for offset in offsets], explicit=False)
    return {offsets[impression]: offsets[click] for impression, click in engaged.items()}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(logs(), st.floats(0.01, 1), st.integers(0, 2**63), st.integers(0, 60))
def test_thinned_negatives_keep_what_a_conversion_takes_back(log, rate, seed, cut):
    spec = line({"negative_rate": rate}).model_copy(update={"seed": seed})
    samples = Ran(*log, range(2, 90, 3)).samples
    parts = [thin_negatives(spec, part) for part in (samples.slice(0, cut), samples.slice(cut))]
    net: dict[int, Any] = {}
    for row in pa.concat_tables(parts).to_pylist():
        weights = np.array([row[name] for name in WEIGHTS])
        net[row["impression_offset"]] = net.get(row["impression_offset"], np.zeros(4)) + weights
    whole = 1 / np.float32(rate)
    for row in newest(samples).to_pylist():
        found, bought = net.get(row["impression_offset"]), row["conversion"]
        if row["label"]:
            np.testing.assert_allclose(found, [1, 0, bought, 1 - bought], atol=1e-4)
        else:
            assert found is None or found.tolist() == [0, whole, 0, whole]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(logs(), st.sets(st.integers(0, 29)))
def test_rows_that_were_skipped_are_never_taken_back(log, skipped):
    ran = Ran(*log, range(2, 90, 3))
    empty = ran.samples.schema.empty_table()
    kept = [part for tick, part in enumerate(ran.parts) if tick not in skipped]
    gone = [part for tick, part in enumerate(ran.parts) if tick in skipped]
    rows = unlearned(pa.concat_tables([empty, *kept]), pa.concat_tables([empty, *gone])).to_pylist()
    net: dict[int, Any] = {}
    for row in rows:
        weights = np.array([row[name] for name in WEIGHTS])
        net[row["impression_offset"]] = net.get(row["impression_offset"], np.zeros(4)) + weights
    for weights in net.values():
        told_of_conversion, click_was_skipped = (0, 0, 1, 0), (0, 1, 1, 0)
        whole = {(0, 1, 0, 1), (1, 0, 0, 1), (1, 0, 1, 0)}
        assert tuple(weights) in {*whole, told_of_conversion, click_was_skipped}


def test_each_impression_once_as_a_later_tick_knew_it():
    ran = Ran([SHOWN, event("click", "a", 9), event("buy", "a", 20)], SERVED, (5, 10, 21))
    first, *later = ran.parts[1:]
    rows = once(first, pa.concat_tables(later)).to_pylist()
    assert [[row[name] for name in ("label", "conversion", *WEIGHTS)] for row in rows] == [
        [1, 1, 1, 0, 1, 0]
    ]


@pytest.mark.parametrize(
    ("label", "conversion", "told"),
    [
        ({}, {"engagement": "click"}, "an event of its own already"),
        ({}, {"provisional_after": "31s"}, "shorten it"),
        ({"outcome": "explicit", "provisional_after": None}, {}, "remove outcome: explicit"),
        ({"delayed_feedback": "fnw"}, {}, "correct, naive or wait"),
        ({}, {"attribution_window": 3}, "not a duration"),
        ({}, {"name": "x"}, "Extra inputs"),
    ],
)
def test_a_conversion_that_does_not_fit_is_refused(label, conversion, told):
    with pytest.raises(ValidationError, match=told):
        line(label, **conversion)


def test_a_line_without_conversions_keeps_its_schemas_and_its_digest():
    plain = line({"conversion": None})
    assert not [name for name in sample_schema(plain).names if "conversion" in name]
    assert fates_of(plain) == FATES
    assert code_of(plain) != code_of(SPEC)
    assert '"conversion"' not in plain.model_dump_json(exclude_none=True)
