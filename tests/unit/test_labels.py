"""Attribution, provisional samples, corrections and fates, against a plain-Python oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.declaration import LineSpec
from headrace.errors import InputError, IntegrityError
from headrace.events import event_schema, served_schema
from headrace.labels.state import LabelState
from tests.counted import counted
from tests.unit.label_oracle import HORIZON, SECOND, oracle

LINES = Path(__file__).parents[2] / "lines"


def line(**label: Any) -> LineSpec:
    raw = yaml.safe_load((LINES / "coupons.yaml").read_text())
    wait = {"attribution_window": "10s", "provisional_after": "3s"}
    raw["label"] = {"engagement": "click", **wait, **label}
    raw["label"] = {key: value for key, value in raw["label"].items() if value is not None}
    return LineSpec.model_validate(raw)


SPEC = line()
EXPLICIT = line(outcome="explicit", provisional_after=None)
NAIVE, FNW = line(delayed_feedback="naive"), line(delayed_feedback="fnw")
WAIT = line(delayed_feedback="wait", provisional_after=None)


def event(name: str, which: str, arrival: float, event_at: float | None = None, value: int = 1):
    event_at = arrival if event_at is None else event_at
    return {
        "event": name,
        "impression_id": which,
        "request_id": None,
        "event_at": int(event_at * SECOND),
        "arrival_at": int(arrival * SECOND),
        "value": 0 if name == "impression" else value,
        "user_id": f"user {which}" if name == "impression" else None,
    }


def shown(which: str, arrival: float, event_at: float | None = None):
    return event("impression", which, arrival, event_at)


def click(which: str, arrival: float, event_at: float | None = None, value: int = 1):
    return event("click", which, arrival, event_at, value)


def vector(
    which: str,
    served_at: float,
    score: float = 0.5,
    arm: str = "champion",
    fallback: str | None = None,
):
    row: dict[str, Any] = dict.fromkeys(served_schema(SPEC).names, 0)
    row |= {"impression_id": which, "request_id": which, "version": "v000001", "score": score}
    row |= {"arm": arm, "propensity": 1.0, "fallback": fallback}
    row |= {name: None for name, kind in SPEC.columns.items()}
    row |= {f"{view}__at": None for view in SPEC.views}
    return row | {"served_at": int(served_at * SECOND)}


class Ran:
    """Everything that a sequence of ticks said."""

    def __init__(self) -> None:
        self.resolved: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.fates: dict[int, str] = {}

    def weights(self) -> dict[int, tuple[float, float]]:
        """(positive, negative) weight of each impression, corrections added."""
        net: dict[int, tuple[float, float]] = {}
        for row in self.samples:
            plus, minus = net.get(row["impression_offset"], (0.0, 0.0))
            net[row["impression_offset"]] = (
                plus + row["positive_weight"],
                minus + row["negative_weight"],
            )
        return net

    def engagements(self) -> dict[int, int]:
        return {
            row["impression_offset"]: row["engagement_offset"]
            for row in self.samples
            if row["engagement_offset"] >= 0
        }


def run(
    events: Sequence[dict[str, Any]],
    served: Sequence[dict[str, Any]],
    ticks: Sequence[int],
    spec: LineSpec = SPEC,
    restart: bool = False,
) -> Ran:
    """Ticks at those times (us): each reads all records that arrived before."""
    state, ran, read, vectors = LabelState(spec, HORIZON), Ran(), 0, 0
    log = pa.Table.from_pylist(list(events), schema=event_schema(spec))
    log = log.append_column("offset", pa.array(np.arange(log.num_rows)))
    vectors_log = pa.Table.from_pylist(list(served), schema=served_schema(spec))
    for at_us in ticks:
        stop = sum(row["arrival_at"] < at_us for row in events)
        served_stop = sum(row["served_at"] < at_us for row in served)
        resolved = state.resolve(log.slice(read, stop - read))
        emitted = state.emit(vectors_log.slice(vectors, served_stop - vectors), at_us)
        ran.resolved += resolved.to_pylist()
        ran.samples += emitted.samples.to_pylist()
        for row in emitted.fates.to_pylist():
            assert row["offset"] not in ran.fates
            ran.fates[row["offset"]] = row["fate"]
        read, vectors = stop, served_stop
        _exactly_one_place(state, ran, read)
        if restart:
            before = state.checkpoint()
            state = LabelState.restore(spec, before, lambda a, b: vectors_log.slice(a, b - a))
            after = state.checkpoint()
            assert all(after[name].equals(before[name]) for name in before)
    return ran


def _exactly_one_place(state: LabelState, ran: Ran, read: int) -> None:
    found = [*ran.fates, *state.pending_offsets().tolist()]
    found += [row["impression_offset"] for row in ran.samples if row["revision"] == 0]
    found += list(ran.engagements().values())
    assert sorted(found) == list(range(read))


def at(*seconds: float) -> list[int]:
    return [int(second * SECOND) for second in seconds]


def test_a_click_in_time_is_a_positive():
    ran = run([shown("a", 1), click("a", 2)], [vector("a", 0.5)], at(2.5))
    (row,) = ran.samples
    assert (row["label"], row["positive_weight"], row["negative_weight"]) == (1, 1, 0)
    assert (row["revision"], row["impression_offset"], row["engagement_offset"]) == (0, 0, 1)
    assert [r["event"] for r in ran.resolved] == ["impression", "click"]
    assert ran.resolved[1]["user_id"] == "user a"


def test_silence_is_a_provisional_negative_that_a_later_click_corrects():
    events = [shown("a", 1), click("a", 9, 8)]
    ran = run(events, [vector("a", 0.5)], at(2, 4, 9.5))
    first, second = ran.samples
    assert (first["label"], first["negative_weight"], first["revision"]) == (0, 1, 0)
    assert first["emitted_at"].timestamp() == 4
    assert (second["label"], second["revision"], second["engagement_offset"]) == (1, 1, 1)
    assert (second["positive_weight"], second["negative_weight"]) == (1, -1)
    assert second["score"] == first["score"]


def test_without_provisional_after_a_negative_waits_for_the_window():
    spec = line(provisional_after=None)
    ran = run([shown("a", 1)], [vector("a", 0.5)], at(5, 10.9, 11), spec)
    assert [row["emitted_at"].timestamp() for row in ran.samples] == [11]


def test_a_wait_for_the_window_emits_once():
    events, vectors = (
        [shown("a", 1), shown("b", 1), click("a", 9)],
        [vector("a", 0), vector("b", 0)],
    )
    ran = run(events, vectors, at(5, 9.5, 11), WAIT)
    assert [
        (row["impression_id"], row["revision"], row["label"], row["emitted_at"].timestamp())
        for row in ran.samples
    ] == [("a", 0, 1, 9.5), ("b", 0, 0, 11)]


@pytest.mark.parametrize("ticks", [(2.5, 3.5), (3.5,)])
def test_fake_negatives_first_whatever_the_tick(ticks):
    ran = run([shown("a", 1), shown("b", 2), click("a", 3)], [vector("b", 0.5), vector("a", 1)],
              at(*ticks), FNW)  # fmt: skip
    rows = [row for row in ran.samples if row["impression_id"] == "a"]
    assert [(row["revision"], row["label"]) for row in rows] == [(0, 0), (1, 1)]
    assert [(row["positive_weight"], row["negative_weight"]) for row in rows] == [(0, 1), (1, -1)]
    assert [row["engagement_offset"] for row in rows] == [-1, 2]
    assert ran.weights() == {0: (1, 0), 1: (0, 1)}


def test_naive_and_correct_keep_the_same_facts():
    events = [shown("a", 1), click("a", 9, 8)]
    both = [run(events, [vector("a", 0.5)], at(2, 4, 9.5), spec).samples for spec in (SPEC, NAIVE)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("lag", "fate"), [(-0.000001, "too_late"), (0, None), (9.999999, None), (10, "too_late")]
)
def test_attribution_is_half_open_by_event_time(lag, fate):
    ran = run([shown("a", 1), click("a", 12, 1 + lag)], [vector("a", 1)], at(12.5))
    assert ran.fates.get(1) == fate
    assert ran.engagements() == ({0: 1} if fate is None else {})


def test_a_click_before_its_impression_waits_for_it():
    ran = run([click("a", 1, 2), shown("a", 5, 2)], [vector("a", 1)], at(3, 6))
    assert ran.engagements() == {1: 0}
    assert [row["knowledge_at"] for row in ran.resolved] == at(5, 5)


def test_first_records_win():
    events = [shown("a", 1), shown("a", 2), click("a", 3), click("a", 4)]
    ran = run(events, [vector("a", 0.5), vector("a", 0.6, 0.9)], at(5))
    assert ran.fates == {1: "duplicate_impression", 3: "duplicate_engagement"}
    assert ran.samples[0]["score"] == 0.5


def test_what_never_finds_its_other_half_gets_a_fate_at_the_horizon():
    events = [click("x", 1), shown("a", 1.5), click("a", 2)]
    ran = run(events, [], at(3, 15.9, 16))
    assert ran.fates == {0: "unmatched"}
    ran = run(events, [], at(3, 16.5))
    assert ran.fates == {0: "unmatched", 1: "unserved", 2: "unserved"}


@pytest.mark.parametrize("restart", [False, True])
def test_answers_of_a_version_asked_for_are_never_learned(restart):
    served = [vector("a", 1, 0.9, "pinned"), vector("b", 1, 0.8, "pinned"), vector("b", 2, 0.4)]
    events = [shown("a", 3), shown("b", 3), click("a", 4)]
    ran = run(events, served, at(5, 16, 30), restart=restart)
    assert [(row["impression_id"], row["score"]) for row in ran.samples] == [("b", 0.4)]
    assert ran.fates == {0: "unserved", 2: "unserved"}


@pytest.mark.parametrize("restart", [False, True])
def test_a_vector_of_defaults_ends_its_events_as_such_and_other_stand_ins_are_learned(restart):
    served = [
        vector("before", 1, fallback="defaults"),
        vector("model", 1, 0.2, fallback="prior"),
        vector("after", 4, fallback="defaults,prior"),
        vector("after", 5, 0.9),  # asked again: what was shown is what was answered first
        vector("version", 4, 0.3, fallback="previous"),
    ]
    names = ("before", "model", "after", "version")
    events = [shown(name, 3) for name in names]
    events += [click(name, 6) for name in names]
    events += [click("before", 7), shown("late", 30)]
    ran = run(events, served, at(3.5, 6.5, 8, 17.9, 18, 31), restart=restart)
    assert {row["impression_id"]: row["label"] for row in ran.samples} == {"model": 1, "version": 1}
    passed = dict.fromkeys((0, 2, 4, 6), "defaults")
    assert ran.fates == {**passed, 8: "duplicate_engagement"}
    assert len([row for row in ran.resolved if row["event"] == "click"]) == 4  # windows count them


def test_an_impression_older_than_the_horizon_is_too_late():
    ran = run([shown("a", 20, 5), shown("b", 20, 5.000001)], [vector("b", 19)], at(21, 40))
    assert ran.fates == {0: "too_late"}


def test_explicit_outcomes_label_and_silence_ends_unlabelled():
    events = [shown("a", 1), shown("b", 1), shown("c", 1), click("a", 2), click("b", 3, value=0)]
    vectors = [vector(which, 0.5) for which in "abc"]
    ran = run(events, vectors, at(4, 15, 16), EXPLICIT)
    assert [
        (row["label"], row["positive_weight"], row["negative_weight"]) for row in ran.samples
    ] == [
        (1, 1, 0),
        (0, 0, 1),
    ]
    assert ran.fates == {2: "unlabelled"}
    assert [row["value"] for row in ran.resolved if row["event"] == "click"] == [1, 0]


def test_marks_only_tell_the_time():
    ran = run([shown("a", 1), event("mark", "", 2)], [vector("a", 0.5)], at(3))
    assert ran.fates == {1: "mark"}
    assert len(ran.resolved) == 1


def test_a_vector_may_come_after_its_impression():
    ran = run([shown("a", 1), click("a", 1.5)], [vector("a", 4)], at(2, 5))
    assert [row["emitted_at"].timestamp() for row in ran.samples] == [5]


def test_due_tells_when_an_idle_tick_would_speak():
    state = LabelState(SPEC, HORIZON)
    log = pa.Table.from_pylist([shown("a", 1)], schema=event_schema(SPEC))
    state.resolve(log.append_column("offset", pa.array([0])))
    state.emit(pa.Table.from_pylist([vector("a", 1)], schema=served_schema(SPEC)), at(2)[0])
    assert [state.due(us) for us in at(3.9, 4)] == [False, True]


def test_a_falling_log_and_an_unknown_event_are_refused():
    with pytest.raises(IntegrityError, match="arrival_at falls"):
        run([shown("a", 2), shown("b", 1)], [], at(3))
    with pytest.raises(InputError, match="'buy'"):
        run([event("buy", "a", 1)], [], at(3))


IDS = "abcd"
times = st.integers(0, 60)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Few ids over many horizons: repeats, ties, early and late engagements, missing vectors."""
    rows = []
    for arrival in sorted(draw(st.lists(times, max_size=30))):
        which = draw(st.sampled_from(IDS))
        back = draw(st.integers(-3, 18))
        name = draw(st.sampled_from(["impression", "click", "click"]))
        value = draw(st.integers(0, 1))
        rows.append(event(name, which, arrival, max(arrival - back, 0), value))
    vectors = [
        vector(draw(st.sampled_from(IDS)), second, score=float(second))
        for second in sorted(draw(st.lists(times, max_size=15)))
    ]
    return rows, vectors


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    logs(),
    st.lists(times, max_size=8),
    st.booleans(),
    st.sampled_from([SPEC, EXPLICIT, WAIT, FNW]),
)
def test_any_split_into_ticks_ends_in_the_same_labels(log, cuts, restart, spec):
    events, vectors = log
    explicit = spec is EXPLICIT
    whole = run(events, vectors, at(200), spec)
    split = run(events, vectors, [*(at(*sorted(set(cuts)))), *at(200)], spec, restart)
    assert split.weights() == whole.weights()
    assert split.engagements() == whole.engagements()
    assert split.fates == whole.fates
    assert split.resolved == whole.resolved
    net = {(1.0, 0.0), (0.0, 1.0)}
    assert set(whole.weights().values()) <= net
    fates, engaged = oracle(events, explicit)
    assert {
        o: f for o, f in whole.fates.items() if not f.startswith("un") or f == "unmatched"
    } == fates
    assert whole.engagements().items() <= engaged.items()


def test_ten_thousand_events_cost_what_they_are_and_not_what_went_before():
    state, count = LabelState(SPEC, 3600 * SECOND), 10_000
    spent = []
    for tick in range(30):
        base = tick * SECOND
        rows = pa.table(
            {
                "event": ["impression"] * count,
                "impression_id": [f"{tick}:{n}" for n in range(count)],
                "request_id": pa.nulls(count, pa.string()),
                "event_at": pa.array(np.full(count, base)).cast(pa.timestamp("us", tz="UTC")),
                "arrival_at": pa.array(np.full(count, base)).cast(pa.timestamp("us", tz="UTC")),
                "value": np.zeros(count, dtype=np.int64),
                **{
                    name: pa.nulls(count, event_schema(SPEC).field(name).type)
                    for name in SPEC.columns
                },
                "offset": np.arange(tick * count, (tick + 1) * count),
            }
        )
        with counted() as work:
            state.resolve(rows)
            state.emit(served_schema(SPEC).empty_table(), base + SECOND)
        spent.append(work)
    assert max(work.calls for work in spent) < 2_000  # not one for each event
    early, late = spent[:10], spent[-10:]
    # blocks are merged as they grow: a row is copied when its block doubles, not in each tick
    assert sum(w.arrow_bytes for w in late) < 2 * sum(w.arrow_bytes for w in early)
    held = [np.median([work.peak_bytes for work in part]) for part in (early, late)]
    assert held[1] < 2 * held[0]
