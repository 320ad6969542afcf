"""DAGs in a stack, by REST: what is parsed and shown, approval, the watched samples; training,
green, and red with its reasons.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from headrace.atomic import write_json
from headrace.line import LineStore
from headrace.sample import Quarantine, TickManifest
from headrace.settings import Settings, find_line
from headrace.simulate.world import SimulatorConfig, history
from headrace.stack import AirflowClient, running, status
from headrace.store import Store
from tests.airflow_stack import FLIPPED, Campaign, airflow_alone, made, until, with_flipped

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def publish(settings: Settings, versions: int) -> LineStore:
    """Versions of no model: nothing here scores."""
    store = LineStore(settings.line_store_url("coupons"), "coupons")
    for number in range(versions):
        version = store.publish(
            {"w": np.full(2, number, np.float32)}, parent=None, from_tick=0, to_tick=0,
            excluded=[], watermark_us=1 + number, event_at_us=1, feature_service="coupons_v1",
            code="test", rows=0, metrics={},
        )  # fmt: skip
        store.advance(store.champion(), version.version, "promote", "test")
    return store


class Rollbacks:
    """The approvals of `rollback_coupons`, by REST."""

    def __init__(self, airflow: AirflowClient) -> None:
        self.airflow = airflow

    def asked(self, version: str) -> str:
        """Trigger a rollback and wait until it waits; returns the run."""
        run = self.airflow.trigger("rollback_coupons", {"version": version, "reason": "by REST"})
        until(lambda: self.state(run, "approve") == "awaiting_input")
        # Airflow hears of the pause from its executor too; who answers before that, within
        # milliseconds, has queued a task that then counts as lost
        time.sleep(3)
        return run

    def answer(self, run: str, option: str, params: dict[str, str]) -> None:
        where = f"/api/v2/dags/rollback_coupons/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
        body = {"chosen_options": [option], "params_input": params}
        self.airflow._call("PATCH", where, body)

    def state(self, run: str, task: str) -> str | None:
        return self.airflow.task_states("rollback_coupons", run).get(task)

    def form(self, run: str) -> dict[str, Any]:
        where = f"/api/v2/dags/rollback_coupons/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
        return dict(self.airflow._call("GET", where))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, AirflowClient]]:
    settings = made(tmp_path_factory.mktemp("local"))
    publish(settings, 3)
    stack = running(settings, "coupons", service_list=airflow_alone)
    with stack, AirflowClient(settings) as airflow:
        airflow.wait_for_dags({"rollback_coupons", "incremental_train_coupons"})
        yield settings, airflow


def test_every_file_is_parsed_and_every_part_is_healthy(local):
    settings, airflow = local
    assert airflow.import_errors() == []
    found = status(settings, service_list=airflow_alone)["services"]
    assert {one["name"]: one["state"] for one in found} == {
        f"airflow-{part}": "healthy"
        for part in ("api-server", "scheduler", "dag-processor", "triggerer")
    }


def test_the_page_of_the_line_is_in_airflow_for_those_who_are_signed_in(local):
    settings, airflow = local
    views = airflow._call("GET", "/api/v2/plugins")["plugins"]
    (view,) = (one["external_views"][0] for one in views if one["name"] == "headrace")
    assert (view["href"], view["destination"]) == ("/headrace/", "nav")
    with httpx.Client(base_url=settings.airflow_url, trust_env=False, timeout=60) as client:
        page = client.get("/headrace/")
        assert "v1/status" in page.text
        assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
        assert client.get("/headrace/v1/status").status_code == 401
        signed_in = {"authorization": f"Bearer {airflow._token}"}
        told = client.get("/headrace/v1/status", headers=signed_in)
        assert (told.status_code, "is the server up?" in told.text) == (502, True)


def test_a_rollback_waits_for_approval_and_keeps_no_other_from_running(local):
    settings, airflow = local
    rollbacks = Rollbacks(airflow)
    store = LineStore(settings.line_store_url("coupons"), "coupons")
    first, second = rollbacks.asked("v000002"), rollbacks.asked("v000001")
    form = rollbacks.form(second)
    assert form["params"]["version"]["schema"]["enum"] == ["v000001", "v000002"]
    rollbacks.answer(second, "Reject", {"version": "v000001"})
    assert airflow.wait("rollback_coupons", second) == "success"
    assert rollbacks.state(second, "move_champion") == "skipped"
    assert store.champion().version == "v000003"
    rollbacks.answer(first, "Approve", {"version": "v000001"})  # another one was picked
    assert airflow.wait("rollback_coupons", first) == "success"
    assert (store.champion().version, store.champion().action) == ("v000001", "rollback")


def test_samples_that_wait_start_a_cycle_before_its_time(local):
    settings, airflow = local
    home = settings.line_home("coupons")
    known = {run["dag_run_id"] for run in airflow.runs("incremental_train_coupons")}

    def begun() -> list[dict[str, Any]]:
        runs = airflow.runs("incremental_train_coupons")
        return [run for run in runs if run["dag_run_id"] not in known]

    time.sleep(5)
    assert not [run for run in begun() if run["run_type"] == "asset_triggered"]
    tick = TickManifest(0, 1, (0, 0), (0, 0), None, None, {}, {"samples": 150})
    write_json(home / "ticks" / "00000000.json", tick.to_json())
    run = until(lambda: [one for one in begun() if one["run_type"] == "asset_triggered"])[0]
    assert airflow.wait("incremental_train_coupons", run["dag_run_id"]) == "success"
    # the manifest promised samples that no part holds: offsets decide, not the event
    tasks = airflow.task_states("incremental_train_coupons", run["dag_run_id"])
    assert (tasks["plan"], tasks["run_pipeline"]) == ("success", "skipped")


@pytest.fixture(scope="module")
def campaign(local: tuple[Settings, AirflowClient]) -> Campaign:
    settings, airflow = local
    spec = find_line(settings, "tickets")
    Store(settings).apply()
    config = SimulatorConfig(seed=spec.seed, history_s=900)
    events = history(spec, config, time.time_ns() // 1_000)
    one = Campaign(settings, spec, airflow, with_flipped(events))
    one.go_on(FLIPPED[0])
    verbs = ("full_train", "incremental_train", "watch_drift", "tune")
    airflow.wait_for_dags({f"{verb}_tickets" for verb in verbs})
    return one


def test_a_full_training_makes_the_first_champion(campaign):
    state, tasks = campaign.ended("full_train", campaign.run("full_train"))
    assert (state, tasks["report_outcome"]) == ("success", "success")
    assert campaign.champion.action == "promote"


def test_bad_data_is_red_with_the_reason_and_the_champion_stays(campaign):
    before = campaign.champion
    campaign.go_on(FLIPPED[1])
    run = campaign.run("incremental_train")
    state, tasks = campaign.ended("incremental_train", run)
    assert (state, tasks["run_pipeline"], tasks["report_outcome"]) == (
        "failed", "success", "failed"
    )  # fmt: skip
    assert "label rate of a stretch" in campaign.log("incremental_train", run, "report_outcome")
    assert campaign.champion == before
    (refused,) = Quarantine(campaign.settings.line_home("tickets")).intervals()
    assert "label rate" in str(refused["reasons"])


def test_later_windows_are_learned(campaign):
    before, seen = campaign.champion, campaign.checked_at
    campaign.go_on(0.8)
    run = campaign.run("incremental_train")
    until(lambda: campaign.checked_at > seen)
    campaign.go_on(0.87)  # the rows that judge come after the window
    assert campaign.ended("incremental_train", run)[0] == "success"
    assert campaign.champion.previous == before.version


@pytest.mark.parametrize("dag", ["watch_drift", "tune"])
def test_watching_and_tuning_are_green(campaign, dag):
    serving = campaign.champion
    run = campaign.run(dag)
    state, tasks = campaign.ended(dag, run)
    assert state == "success", {task: campaign.log(dag, run, task) for task in tasks}
    assert campaign.champion == serving
