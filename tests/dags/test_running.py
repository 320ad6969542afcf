"""DAGs in whole stacks, by REST: approval, the watched samples, and runs that wait on a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from headrace.atomic import write_json
from headrace.line import LineStore
from headrace.sample import TickManifest
from headrace.settings import PROJECT, Settings, load_settings
from headrace.stack import AirflowClient, Service, running, services, status
from tests.campaign import free_port
from tests.kfp_server import RUN_ID, TOKEN, Cluster, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def airflow_alone(settings: Settings, line: str) -> tuple[Service, ...]:
    return tuple(one for one in services(settings, line) if one.name.startswith("airflow"))


def made(root: Path, **environ: str) -> Settings:
    """Settings of a home of its own, whose line asks before a rollback and watches its samples."""
    declared = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text())
    declared["rollback"] = {"approval": True, "wait": "10m"}
    declared["cadence"] |= {"incremental": "1h", "on_samples": 100}
    (root / "lines").mkdir()
    (root / "lines" / "coupons.yaml").write_text(yaml.safe_dump(declared))
    ports = ("AIRFLOW", "SERVER", "GRPC", "COLLECTOR")
    return load_settings(
        {"HEADRACE_HOME": str(root / "home"), "HEADRACE_LINES_DIR": str(root / "lines")}
        | {f"HEADRACE_{name}_PORT": str(free_port()) for name in ports}
        | environ
    )


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


def until(found: Callable[[], Any], timeout_s: float = 240.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
    return answer


class Rollbacks:
    """The approvals of `rollback_coupons`, by REST."""

    def __init__(self, airflow: AirflowClient) -> None:
        self.airflow = airflow

    def asked(self, version: str) -> str:
        """Trigger a rollback and wait until it waits; returns the run."""
        run = self.airflow.trigger("rollback_coupons", {"version": version, "reason": "by REST"})
        until(lambda: self.state(run, "approve") == "awaiting_input")
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
    with httpx.Client(base_url=settings.airflow_url, trust_env=False) as client:
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
def cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Settings, AirflowClient, Cluster]]:
    with serving() as remote:
        environ = {"HEADRACE_KFP_ENDPOINT": remote.url, "HEADRACE_KFP_TOKEN": TOKEN}
        settings = made(tmp_path_factory.mktemp("cluster"), **environ)
        stack = running(settings, "coupons", service_list=airflow_alone)
        with stack, AirflowClient(settings) as airflow:
            airflow.wait_for_dags({"batch_score_coupons"})
            until(lambda: ended(airflow))
            yield settings, airflow, remote


def ended(airflow: AirflowClient) -> bool:
    """Whether the run of yesterday, which the schedule begins by itself, is over."""
    states = {run["state"] for run in airflow.runs("batch_score_coupons")}
    return bool(states) and states <= {"success", "failed"}


DAY = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-02T00:00:00Z"}


def deferred(airflow: AirflowClient, remote: Cluster) -> str:
    """A run whose pipeline goes on on the cluster, with nobody waiting for it."""
    remote.states, remote.run = ["RUNNING"], None
    run = airflow.trigger("batch_score_coupons", DAY)
    until(lambda: airflow.task_states("batch_score_coupons", run).get("score_rows") == "deferred")
    return run


def test_a_deferred_run_survives_a_restart_of_triggerer_and_scheduler(cluster):
    settings, airflow, remote = cluster
    run, submitted = deferred(airflow, remote), len(remote.created)
    for one in status(settings, service_list=airflow_alone)["services"]:
        if one["name"] in ("airflow-triggerer", "airflow-scheduler"):
            os.kill(one["pid"], signal.SIGKILL)
    remote.states = ["SUCCEEDED"]
    assert airflow.wait("batch_score_coupons", run) == "success"
    assert len(remote.created) == submitted


def test_a_run_that_is_marked_failed_is_ended_on_the_cluster(cluster):
    _settings, airflow, remote = cluster
    run, ended = deferred(airflow, remote), len(remote.terminated)
    where = f"/api/v2/dags/batch_score_coupons/dagRuns/{run}/taskInstances/score_rows"
    airflow._call("PATCH", where, {"new_state": "failed"})
    until(lambda: remote.terminated[ended:] == [RUN_ID])
    assert airflow.wait("batch_score_coupons", run) == "failed"


def test_a_run_that_was_cancelled_on_the_cluster_is_red_and_not_tried_again(cluster):
    _settings, airflow, remote = cluster
    run, submitted = deferred(airflow, remote), len(remote.created)
    remote.states = ["CANCELED"]
    assert airflow.wait("batch_score_coupons", run) == "failed"
    assert len(remote.created) == submitted


def test_an_endpoint_that_is_away_is_tried_again_and_recovers(cluster):
    _settings, airflow, remote = cluster
    remote.states, remote.run = ["SUCCEEDED"], None
    remote.token = "another"
    submitted = len(remote.created)
    run = airflow.trigger("batch_score_coupons", DAY)
    until(
        lambda: airflow.task_states("batch_score_coupons", run).get("score_rows") == "up_for_retry"
    )
    remote.token = TOKEN
    assert airflow.wait("batch_score_coupons", run) == "success"
    assert len(remote.created) == submitted + 1
