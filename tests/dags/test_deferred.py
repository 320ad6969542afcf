"""DAGs in a stack that sends its pipelines to a cluster: deferred, killed, cancelled, recovered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from headrace.settings import Settings
from headrace.stack import AirflowClient, running, status
from tests.airflow_stack import airflow_alone, made, until
from tests.faults.told import tell
from tests.kfp_server import RUN_ID, TOKEN, Cluster, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


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
    """A run whose pipeline goes on on the cluster, which the triggerer alone asks for."""
    remote.states, remote.run = ["RUNNING"], None
    run = airflow.trigger("batch_score_coupons", DAY)
    until(lambda: airflow.task_states("batch_score_coupons", run).get("score_rows") == "deferred")
    before = len(remote.requests)
    until(lambda: any(RUN_ID in path for _, path in remote.requests[before:]))
    return run


def test_a_deferred_run_survives_a_restart_of_triggerer_and_scheduler(cluster):
    settings, airflow, remote = cluster
    run, submitted = deferred(airflow, remote), len(remote.created)
    for one in status(settings, service_list=airflow_alone)["services"]:
        if one["name"] in ("airflow-triggerer", "airflow-scheduler"):
            os.kill(one["pid"], signal.SIGKILL)
    remote.states, killed = ["SUCCEEDED"], time.monotonic()
    assert airflow.wait("batch_score_coupons", run) == "success"
    took_s = time.monotonic() - killed
    assert len(remote.created) == submitted
    tell(
        "airflow_deferred",
        "scheduler and triggerer of Airflow killed by SIGKILL; recovered is when the run was green",
        "tests/dags/test_deferred.py",
        {"while a pipeline went on on a cluster": 2},
        "the run is green, and its pipeline was sent to the cluster once",
        {"lost": 0, "duplicated": len(remote.created) - submitted},
        [took_s],
        [len(remote.created) - submitted],
        "pipelines",
    )


def test_a_run_that_is_marked_failed_is_ended_on_the_cluster(cluster):
    _settings, airflow, remote = cluster
    run, ended = deferred(airflow, remote), len(remote.terminated)
    where = f"/api/v2/dags/batch_score_coupons/dagRuns/{run}/taskInstances/score_rows"
    airflow._call("PATCH", where, {"new_state": "failed"})
    until(lambda: remote.terminated[ended:] == [RUN_ID])
    assert airflow.wait("batch_score_coupons", run) == "failed"


def mistaken(settings: Settings, run: str) -> bool:
    """Whether Airflow's scheduler took the end of the run's task for a lost worker.

    On SQLite it may read the state of a task before the API server has written how it ended, and
    tries again then, whatever the task asked for. Its log says so.
    """
    log = (settings.home / "logs" / "airflow-scheduler.log").read_text(encoding="utf-8")
    said = "but the task instance's state attribute is running"
    return any(run in line and said in line for line in log.splitlines())


def test_a_run_that_was_cancelled_on_the_cluster_is_red_and_not_tried_again(cluster):
    settings, airflow, remote = cluster
    run, submitted = deferred(airflow, remote), len(remote.created)
    remote.states = ["CANCELED"]
    # a mistaken scheduler tries again after four minutes
    assert airflow.wait("batch_score_coupons", run, timeout_s=600) == "failed"
    assert len(remote.created) == submitted or mistaken(settings, run)


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
