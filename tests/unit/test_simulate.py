from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, InputError
from headrace.events import event_schema
from headrace.settings import PROJECT, Settings, load_line, load_settings
from headrace.simulate.campaign import SimulatorConfig, World, history, run, spoil
from headrace.simulate.poison import DUPLICATE, FLIPPED, STOP, UNIT, PoisonSwitch
from headrace.simulate.truth import read_json, read_truth
from headrace.simulate.world import EXAMINATION, MINUTE_US
from tests.loopback import Answering, serving_on

END_US = 1_763_000_000_000_000
SMALL = SimulatorConfig(users=200, history_s=120)


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "coupons.yaml")


@pytest.fixture(scope="module")
def past(spec: LineSpec) -> pa.Table:
    return history(spec, SMALL, END_US)


def _answers(world: World, at_us: int) -> np.ndarray:
    slot = np.arange(world.config.coupons)
    user = slot % world.config.users
    return world.p_item(user, slot, np.full(len(slot), at_us))


def test_the_same_seed_gives_the_same_history_bytes(spec: LineSpec, past: pa.Table) -> None:
    again = history(spec, SMALL, END_US)
    sinks = [pa.BufferOutputStream() for _ in range(2)]
    for table, sink in zip((past, again), sinks, strict=True):
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert sinks[0].getvalue().equals(sinks[1].getvalue())
    assert not history(spec, replace(SMALL, seed=8), END_US).equals(past)


def test_history_arrives_in_order_before_its_end(spec: LineSpec, past: pa.Table) -> None:
    assert past.schema.equals(event_schema(spec))
    arrival = past["arrival_at"].cast(pa.int64()).to_numpy()
    assert (np.diff(arrival) >= 0).all()
    assert arrival.max() < END_US
    assert (arrival > past["event_at"].cast(pa.int64()).to_numpy()).all()


def test_history_has_duplicates_and_events_out_of_order(spec: LineSpec) -> None:
    events = history(spec, replace(SMALL, duplicated=0.05, reordered=0.05), END_US)
    shown = events.filter(pc.equal(events["event"], "impression"))
    assert len(pc.unique(shown["impression_id"])) < shown.num_rows
    assert (np.diff(events["event_at"].cast(pa.int64()).to_numpy()) < 0).any()


def test_history_clicks_follow_the_true_probabilities(spec: LineSpec) -> None:
    config = SimulatorConfig(duplicated=0, reordered=0)
    events = history(spec, config, END_US)
    shown = events.filter(pc.equal(events["event"], "impression"))
    world = World(config)
    user = np.array([int(name[1:]) for name in shown["user_id"].to_pylist()])
    slot = np.array([int(name[1:4]) for name in shown["item_id"].to_pylist()])
    at_us = shown["event_at"].cast(pa.int64()).to_numpy()
    expected = world.p_click(user, slot, shown["position"].to_numpy(), at_us).sum()
    clicks = events.num_rows - shown.num_rows
    assert 0.9 * expected < clicks < 1.05 * expected  # some arrive after the end
    assert 0.03 < clicks / shown.num_rows < 0.3


def test_coupons_appear_and_expire() -> None:
    world = World(SMALL)
    slot = np.arange(SMALL.coupons)
    now = world.generation(slot, np.full(len(slot), END_US))
    soon = world.generation(slot, np.full(len(slot), END_US + 8 * MINUTE_US))
    later = world.generation(slot, np.full(len(slot), END_US + 16 * MINUTE_US))
    assert (soon - now <= 1).all()
    assert (later > now).all()


def test_tastes_drift_and_the_shock_moves_one_category_at_once() -> None:
    calm, shocked = World(SMALL), World(replace(SMALL, shock_at_us=END_US))
    hit = shocked.slot_category == shocked.shocked
    assert np.array_equal(_answers(calm, END_US - 1), _answers(shocked, END_US - 1))
    assert (_answers(shocked, END_US)[hit] > _answers(calm, END_US)[hit]).all()
    assert np.array_equal(_answers(shocked, END_US)[~hit], _answers(calm, END_US)[~hit])
    user, slot = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    life = [calm.p_item(user, slot, np.array([END_US + s * 1_000_000])) for s in range(0, 60, 10)]
    assert np.ptp(life) > 0


def test_position_bias_lowers_the_click_probability() -> None:
    world, places = World(SMALL), np.arange(len(EXAMINATION))
    zeros = np.zeros_like(places)
    p = world.p_click(zeros, zeros, places, np.full(len(places), END_US))
    assert (np.diff(p) < 0).all()


def test_delays_follow_the_stated_mixture_and_end_inside_the_window() -> None:
    delays = World(SMALL).delays_us(np.random.default_rng(0), 50_000, 300_000_000) / 1e6
    assert delays.max() < 300
    assert 3.0 < np.median(delays) < 4.5
    assert 0.03 < (delays > 60).mean() < 0.06


def test_a_line_without_the_campaigns_columns_is_refused(spec: LineSpec) -> None:
    columns = {name: kind for name, kind in spec.columns.items() if name != "position"}
    with pytest.raises(DeclarationError, match="position"):
        history(spec.model_copy(update={"columns": columns}), SMALL, END_US)


def test_a_config_that_cannot_be_shown_is_refused() -> None:
    with pytest.raises(DeclarationError, match="shown"):
        SimulatorConfig(shown=(4, 7))
    with pytest.raises(DeclarationError, match="candidates"):
        SimulatorConfig(candidates=5)


class _Service(Answering):
    """A scoring server and a collector in one, with a choice of moods."""

    mood = "well"
    posted: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self._body())
        if type(self).mood == "not ready":
            self._json(503, {"detail": "no champion"})
        elif self.path == "/v1/score":
            rows = [
                {"impression_id": f"{body['request_id']}:{i}", "score": 0.1 + i / 100}
                for i in range(len(body["candidates"]))
            ]
            self._json(200, {"version": "v000001", "staleness_s": 2.0, "scores": rows})
        else:
            type(self).posted.extend(body["events"])
            bad = sum(not _is_well_formed(event) for event in body["events"])
            self._json(200, {"accepted": len(body["events"]) - bad, "malformed": bad})


def _is_well_formed(event: dict[str, Any]) -> bool:
    return (
        bool(event.get("impression_id"))
        and event.get("event") in ("impression", "click")
        and isinstance(event.get("event_at"), int)
        and isinstance(event.get("value", 1), int)
    )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Settings, type[_Service]]]:
    handler = type("Service", (_Service,), {"posted": [], "mood": "well"})
    with serving_on(handler) as address:
        port = address.rpartition(":")[2]
        environ = {"HEADRACE_SERVER_PORT": port, "HEADRACE_COLLECTOR_PORT": port}
        yield load_settings({"HEADRACE_HOME": str(tmp_path), **environ}), handler


def _run_for(
    settings: Settings, spec: LineSpec, config: SimulatorConfig, s: float
) -> dict[str, Any]:
    stop = threading.Event()
    timer = threading.Timer(s, stop.set)
    timer.start()
    summary = run(settings, spec, config, stop)
    timer.join()
    return summary


HASTY = replace(
    SMALL, requests_per_s=120.0, malformed=0.05, reordered=0.0, delays=((1.0, 0.05, 0.1),)
)


def test_live_traffic_closes_the_loop_and_keeps_the_truth(
    spec: LineSpec, service: tuple[Settings, type[_Service]]
) -> None:
    settings, handler = service
    summary = _run_for(settings, spec, HASTY, 0.75)
    home = settings.line_home(spec.line)
    truth, sent = read_truth(home, "candidates"), read_truth(home, "sent")
    shown = truth.filter(pc.greater_equal(truth["position"], 0))
    assert truth.num_rows == 12 * summary["requests"]["answered"]
    assert summary["events"]["sent"] == sent.num_rows == len(handler.posted)
    assert summary["events"]["malformed"] == summary["events"]["spoiled"] > 0
    good = [event for event in handler.posted if _is_well_formed(event)]
    posted = {e["impression_id"] for e in good if e["event"] == "impression"}
    assert posted == set(shown["impression_id"].to_pylist())
    clicked = set(truth.filter(truth["clicked"])["impression_id"].to_pylist())
    assert {e["impression_id"] for e in good if e["event"] == "click"} <= clicked
    assert {"user_id", "item_id", "category", "discount", "position"} <= set(good[0])
    assert read_json(home / "truth" / "summary.json") == summary
    assert (
        read_truth(home, "requests")["status"].to_pylist() == [200] * summary["requests"]["asked"]
    )


def test_flipped_labels_engage_exactly_what_was_not_clicked(
    spec: LineSpec, service: tuple[Settings, type[_Service]]
) -> None:
    settings, handler = service
    PoisonSwitch(settings, spec.line).on(FLIPPED)
    _run_for(settings, spec, replace(HASTY, malformed=0.0), 0.5)
    truth = read_truth(settings.line_home(spec.line), "candidates")
    assert all(truth["poisoned"].to_pylist())
    clicked = set(truth.filter(truth["clicked"])["impression_id"].to_pylist())
    engaged = {e["impression_id"] for e in handler.posted if e["event"] == "click"}
    assert engaged
    assert clicked
    assert not engaged & clicked


def test_a_poison_spoils_what_is_sent_while_it_is_on(
    spec: LineSpec, service: tuple[Settings, type[_Service]]
) -> None:
    settings, handler = service
    switch, calm = PoisonSwitch(settings, spec.line), replace(HASTY, malformed=0.0, duplicated=0.0)
    sent = {}
    for poison in (DUPLICATE, UNIT, STOP):
        switch.on(poison)
        handler.posted.clear()
        _run_for(settings, spec, calm, 0.5)
        sent[poison] = [e for e in handler.posted if e["event"] == "impression"]
    ids = [event["impression_id"] for event in sent[DUPLICATE]]
    assert len(ids) == 4 * len(set(ids)) > 0
    assert min(event["discount"] for event in sent[UNIT]) >= 5
    assert sent[STOP] == []
    switch.off()
    assert switch.read() is None
    with pytest.raises(InputError, match="'flood': no such poison; there are: flipped labels"):
        switch.on("flood")


def test_errors_of_the_services_are_counted_and_nothing_crashes(
    spec: LineSpec, service: tuple[Settings, type[_Service]]
) -> None:
    settings, handler = service
    handler.mood = "not ready"
    summary = _run_for(settings, spec, HASTY, 0.5)
    assert summary["requests"]["status_503"] == summary["requests"]["asked"] > 0
    nobody = replace(settings, server_port=9, collector_port=9)
    summary = _run_for(nobody, spec, HASTY, 0.5)
    assert summary["requests"]["error_ConnectError"] == summary["requests"]["asked"] > 0


@pytest.mark.parametrize("kind", range(4))
def test_spoiled_events_are_malformed(kind: int) -> None:
    event = {"event": "click", "impression_id": "a:0", "event_at": 1, "value": 1}
    assert _is_well_formed(event)
    assert not _is_well_formed(spoil(event, kind))
