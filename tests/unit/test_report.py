from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import cycle
from headrace.atomic import write_json
from headrace.cycle import Cycle
from headrace.declaration import LineSpec
from headrace.demo.claims import claims
from headrace.events import event_schema, served_schema
from headrace.ingest.plan import Logs
from headrace.ingest.service import advance, import_history, resume
from headrace.line import Champion, LineStore, Version
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from headrace.metrics import log_loss
from headrace.report import freshness, ranking
from headrace.report.measure import count_cycles, measure, write
from headrace.sample import head_tick
from headrace.settings import PROJECT, Settings, load_line, load_settings
from headrace.simulate.campaign import SimulatorConfig, history
from headrace.simulate.outbox import now_us
from headrace.simulate.truth import TruthLog
from headrace.simulate.world import EXAMINATION
from headrace.store import Store
from tests.campaign import Nowhere

S = 1_000_000


def _version(name: str, parent: str | None, start: int, stop: int, *excluded: list[int]) -> Version:
    known: dict[str, Any] = dict.fromkeys(Version.__dataclass_fields__)
    known |= {"version": name, "parent": parent, "from_tick": start, "to_tick": stop}
    return Version(**known | {"excluded": list(excluded), "watermark_us": stop * S})


def _cycle(**known: Any) -> Cycle:
    return Cycle(**{"run": "run-1", "kind": "incremental", "started_us": 1, **known})


class TestStaleness:
    versions = {  # noqa: RUF012
        "a": _version("a", None, 0, 2),
        "b": _version("b", "a", 2, 5, [3, 4]),
        "c": _version("c", "b", 5, 6),
    }

    def test_a_version_has_learned_its_lineage_without_what_was_excluded(self) -> None:
        learned = freshness.covered(self.versions, "c", 7).tolist()
        assert learned == [True, True, True, False, True, True, False]

    def test_the_first_answer_by_any_version_that_knows_a_tick_counts(self) -> None:
        found = freshness.first_to_answer(self.versions, {"b": 20, "a": 10, "bootstrap": 1}, 6)
        assert found.version == ["a", "a", "b", None, "b", None]
        assert found.response_us.tolist() == [10, 10, 20, freshness.NEVER, 20, freshness.NEVER]

    def test_an_event_belongs_to_the_first_tick_that_sampled_it(self) -> None:
        samples = [
            (0, pa.table({"impression_offset": [0, 2], "engagement_offset": [-1, 3]})),
            (4, pa.table({"impression_offset": [0], "engagement_offset": [5]})),
        ]
        assert freshness.ticks_of_events(samples, 7).tolist() == [0, -1, 0, 0, -1, 4, -1]

    def test_the_stages_add_up_to_the_whole(self) -> None:
        learned = freshness.first_to_answer(self.versions, {"a": 9 * S, "b": 70 * S}, 6)
        champions = [
            Champion(1, "a", 8 * S, "promote", "", None),
            Champion(2, "b", 65 * S, "promote", "", "a"),
            Champion(3, "b", 99 * S, "forward", "", "a"),
        ]
        measured = freshness.staleness(
            arrival_us=np.array([10, 10, 10], dtype=np.int64) * S,
            tick_of=np.array([2, 3, -1], dtype=np.int64),
            tick_at_us=np.arange(6, dtype=np.int64) * 10 * S,
            learned=learned,
            cycles=[_cycle(version="b", started_us=40 * S)],
            champions=champions,
        )
        assert measured["p50"] == measured["max"] == 60.0
        assert (measured["events"], measured["unlearned"]) == (1, 2)
        medians = [measured["stages"][stage]["p50"] for stage in freshness.STAGES]
        assert medians == [10.0, 20.0, 25.0, 5.0]

    def test_nothing_learned_gives_no_number(self) -> None:
        none = np.empty(0, dtype=np.int64)
        learned = freshness.first_to_answer({}, {}, 0)
        measured = freshness.staleness(none, none, none, learned, cycles=[], champions=[])
        assert measured["p95"] is None
        assert measured["events"] == 0


def _rows(**changed: Any) -> ranking.Scored:
    """Two requests of three candidates, two of them shown."""
    base: dict[str, Any] = {
        "request": np.array([0, 0, 0, 1, 1, 1]),
        "position": np.array([0, 1, -1, 1, -1, 0]),
        "p_item": np.array([0.1, 0.2, 0.4, 0.3, 0.1, 0.2]),
        "p_click": np.array([0.1, 0.2 * EXAMINATION[1], np.nan, 0.3 * EXAMINATION[1], np.nan, 0.2]),
        "clicked": np.array([True, False, False, False, False, True]),
        "poisoned": np.zeros(6, dtype=bool),
        "sent_us": np.array([1, 1, 1, 2, 2, 2]) * S,
        "served": np.array([0.3, 0.2, 0.1, 0.3, 0.1, 0.2]),
        "frozen": np.full(6, 0.5),
    }
    return ranking.Scored(**base | changed)


class TestRanking:
    def test_expected_clicks_place_the_best_scores_on_top(self) -> None:
        clicks, shown = ranking.expected_clicks(_rows(), _rows().served)
        second = EXAMINATION[1]
        assert shown.tolist() == [2, 2]
        assert np.allclose(clicks, [0.1 + 0.2 * second, 0.3 + 0.2 * second])

    def test_no_ranking_beats_the_oracle_and_the_rates_are_of_shown_places(self) -> None:
        rates = ranking.click_rates(_rows())
        assert rates["oracle"] == pytest.approx((0.4 + 0.3 + 0.4 * EXAMINATION[1]) / 4)
        assert rates["frozen_base_estimate"] <= rates["oracle"]
        assert rates["served"] <= rates["oracle"]
        assert rates["observed"] == 0.5
        expected = rates["served"] / rates["frozen_base_estimate"] - 1
        assert rates["uplift"] == pytest.approx(expected)

    def test_log_losses_are_of_the_shown_rows_against_the_true_clicks(self) -> None:
        rows = _rows()
        losses = ranking.log_losses(rows)
        assert losses["rows"] == 4
        assert losses["frozen_base"] == pytest.approx(np.log(2))
        shown = rows.shown
        assert losses["oracle"] == pytest.approx(log_loss(rows.clicked[shown], rows.p_click[shown]))

    def test_without_rows_there_are_no_figures(self) -> None:
        empty = {name: value[:0] for name, value in vars(_rows()).items()}
        rows = ranking.Scored(**empty)
        assert ranking.click_rates(rows)["served"] is None
        assert ranking.log_losses(rows)["oracle"] is None
        assert ranking.rolling(rows)["at_us"] == []


def test_cycles_are_counted_by_outcome_and_the_base_is_not_one_of_them() -> None:
    outcomes = ("promoted", "rejected", "idle", "failed", "promoted")
    cycles = [_cycle(outcome=outcome) for outcome in outcomes]
    counted = count_cycles([_cycle(kind="full", outcome="promoted"), *cycles])
    assert (counted["run"], counted["promoted"], counted["rejected"]) == (4, 2, 1)
    assert (counted["failed"], counted["skipped"], len(counted["list"])) == (1, 1, 6)


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "coupons.yaml")


@pytest.fixture(scope="module")
def lived(spec: LineSpec, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home with a history, 40 live impressions, a base and one promoted and one refused cycle."""
    settings = load_settings({"HEADRACE_HOME": str(tmp_path_factory.mktemp("home"))})
    Store(settings).apply()
    home = settings.line_home(spec.line)
    end_us = now_us() - 120 * S
    past = history(spec, SimulatorConfig(users=50, history_s=20), end_us)
    import_history(settings, spec, past, 5 * S, online=Nowhere())
    store = LineStore(home, spec.line)
    _publish(store, spec, None, 0, head_tick(home), end_us)
    base = store.advance(None, "v000001", "promote", "base")
    writer = EventWriter(home / "log" / "events", spec)
    served_log = FileLog(home / "log" / "served", served_schema(spec), writer=True)
    served = _relabel(served_log.read(0, 40), "s", "v000001", end_us + S)
    served_log.append(served)
    impressions = past.filter(pa.compute.equal(past["event"], "impression")).slice(0, 40)
    writer.append_stamped(_live(impressions, served, end_us + 2 * S))
    state = resume(spec, home, Logs(writer, served_log))
    advance(state, None)
    late = {"event": "mark", "impression_id": "", "value": 0}
    late |= dict.fromkeys(("event_at", "arrival_at"), end_us + 30 * S)
    writer.append_stamped(pa.Table.from_pylist([late], schema=event_schema(spec)))
    advance(state, None)
    _publish(store, spec, "v000001", head_tick(home) - 2, head_tick(home), end_us + 2 * S)
    store.advance(base, "v000002", "promote", "better")
    served_log.append(_relabel(served.slice(0, 1), "t", "v000002", now_us() + S))
    served_log.close()
    writer.close()
    window = (head_tick(home) - 2, head_tick(home))
    for known in (
        {"version": "v000002", "outcome": "promoted", "interval": window, "stage": "promote"},
        {"outcome": "rejected", "interval": window, "reasons": ("label_rate <0.9>",)},
    ):
        began = end_us + (40 + len(known)) * S
        cycle.record(settings, spec, _cycle(**known, started_us=began))
    _tell_truth(home, served, end_us)
    return settings


def _publish(
    store: LineStore, spec: LineSpec, parent: str | None, start: int, stop: int, at_us: int
) -> None:
    from tests.serving import untrained  # TensorFlow, for those alone who ask for it

    known = {"from_tick": start, "to_tick": stop, "excluded": [], "watermark_us": at_us}
    known |= {"event_at_us": at_us, "feature_service": spec.feature_service, "code": "test"}
    state = untrained(spec).state()
    store.publish(state, parent=parent, rows=1, metrics={}, **known)


def _relabel(served: pa.Table, prefix: str, version: str, at_us: int) -> pa.Table:
    """Served rows in requests of four, as if `version` had answered with scores."""
    rows = served.to_pylist()
    for index, row in enumerate(rows):
        request = f"{prefix}{index // 4}"
        row |= {"impression_id": f"{request}:{index % 4}", "request_id": request}
        row |= {"version": version, "score": 0.05 + index / 200, "served_at": at_us}
    return pa.Table.from_pylist(rows, schema=served.schema)


def _live(impressions: pa.Table, served: pa.Table, at_us: int) -> pa.Table:
    rows = impressions.to_pylist()
    for row, answer in zip(rows, served.to_pylist(), strict=True):
        row |= {"impression_id": answer["impression_id"], "request_id": answer["request_id"]}
        row |= {"event_at": at_us, "arrival_at": at_us}
    return pa.Table.from_pylist(rows, schema=impressions.schema)


def _tell_truth(home: Path, served: pa.Table, end_us: int) -> None:
    truth = TruthLog(home / "truth", "run")
    for index, name in enumerate(served["impression_id"].to_pylist()):
        at_us = end_us + 2 * S
        truth.add("candidates", {
            "impression_id": name, "request_id": name.split(":")[0], "position": index % 4,
            "p_item": 0.2, "p_click": 0.2 * EXAMINATION[index % 4], "clicked": index % 5 == 0,
            "poisoned": index < 8, "sent_at": at_us,
        })  # fmt: skip
        truth.add("sent", {
            "event": "impression", "impression_id": name, "malformed": False,
            "acknowledged_at": at_us,
        })  # fmt: skip
    lost = {"event": "click", "impression_id": "s0:0", "malformed": False}
    truth.add("sent", lost | {"acknowledged_at": end_us})
    for latency_ms, status in ((1.0, 503), (10.0, 200), (30.0, 200), (5000.0, 0)):
        truth.add("requests", {
            "request_id": "r", "started_at": end_us, "latency_ms": latency_ms, "status": status,
            "version": None, "staleness_s": None,
        })  # fmt: skip
    truth.finish({"started_us": end_us, "shock_at_us": end_us + 20 * S})
    poison = {"from_us": end_us + S, "to_us": end_us + 3 * S}
    rollback = {"at_us": end_us + 50 * S, "ms": 321.0, "forward_us": end_us + 51 * S}
    write_json(home / "truth" / "drills.json", {"poison": poison, "rollback": rollback})


@pytest.fixture(scope="module")
def measured(lived: Settings, spec: LineSpec) -> dict[str, Any]:
    return measure(lived, spec)


def test_measure_has_the_keys_of_the_report(measured: dict[str, Any]) -> None:
    assert {"p50", "p95", "max", "stages"} <= set(measured["staleness_s"])
    assert {"run", "promoted", "rejected"} <= set(measured["cycles"])
    assert {"served", "frozen_base", "oracle"} <= set(measured["logloss"])
    assert {"served", "frozen_base_estimate", "oracle"} <= set(measured["click_rate"])
    parity = measured["parity"]
    assert (parity["history"], parity["rows"], len(parity["first"])) == ("feast", 41, 5)
    # rows of the history's start, as if read now: most keys were written again since
    assert sum(parity["by_cause"].values()) == parity["mismatches"]
    assert parity["by_cause"]["late_push"] > 41
    assert {"requests", "errors", "p50_ms", "p99_ms"} <= set(measured["serving"])
    names = {"appended", "learned", "pending", "quarantined", "malformed", "lost"}
    assert names <= set(measured["events"])
    assert json.loads(json.dumps(measured, allow_nan=False))["rollback_ms"] == 321.0


def test_measure_follows_live_events_to_the_first_answer(measured: dict[str, Any]) -> None:
    found = measured["staleness_s"]
    assert found["events"] == 40
    assert found["max"] == found["p50"] > 100
    whole = sum(stage["p50"] for stage in found["stages"].values())
    assert whole == pytest.approx(found["p50"], abs=0.01)


def test_an_acknowledged_event_that_the_log_lacks_is_lost(measured: dict[str, Any]) -> None:
    assert measured["events"]["acknowledged_not_in_log"] == 1
    assert measured["events"]["lost"] == 1


def test_errors_count_from_the_first_good_answer(measured: dict[str, Any]) -> None:
    serving = measured["serving"]
    assert (serving["requests"], serving["errors"], serving["before_ready"]) == (4, 1, 1)
    assert serving["p50_ms"] == 20.0


def test_poison_that_the_champion_learned_was_not_rejected(measured: dict[str, Any]) -> None:
    assert measured["poison"]["impressions"] == 8
    assert measured["poison"]["learned"] == 8
    assert measured["poison"]["rejected"] is False


def test_frozen_base_rescores_the_served_vectors(measured: dict[str, Any]) -> None:
    assert measured["logloss"]["rows"] == 40
    assert 0 < measured["logloss"]["frozen_base"] < 2
    assert measured["logloss"]["frozen_base"] != measured["logloss"]["served"]


def test_claims_name_what_does_not_hold(measured: dict[str, Any]) -> None:
    held = {claim["name"]: claim["holds"] for claim in claims(measured)}
    assert held["rolled back and forward"]
    assert not held["no event lost"]
    assert not held["poisoned window rejected"]
    assert not held["at least 2 cycles promoted"]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_every_chart_has_words(
    lived: Settings, spec: LineSpec, tmp_path: Path
) -> None:
    report = write(lived, spec, tmp_path, claims)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    text = (tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(text)
    tags = [tag for tag, _ in page.seen]
    figures = [attrs for tag, attrs in page.seen if tag == "figure"]
    assert tags.count("svg") == len(figures) == 4
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    assert not {"script", "link", "img"} & set(tags)
    assert "label_rate &lt;0.9&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    ids = [attrs["id"] for tag, attrs in page.seen if attrs.get("id") and tag == "clippath"]
    assert len(ids) == len(set(ids))


def test_a_home_where_nothing_happened_measures_as_nothing(spec: LineSpec, tmp_path: Path) -> None:
    empty = load_settings({"HEADRACE_HOME": str(tmp_path)})
    found = measure(empty, spec)
    assert found["staleness_s"]["p95"] is None
    assert found["serving"]["requests"] == found["parity"]["rows"] == 0
    assert not any(claim["holds"] for claim in claims(found) if claim["name"] != "no event lost")
