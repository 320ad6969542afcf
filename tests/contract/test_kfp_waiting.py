"""Waiting for a run on a cluster as the triggerer does: every end is a value, no end is missed."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict
from typing import Any

import kfp_server_api as api
import pytest

from headrace import records
from headrace.errors import EnvironmentFault, HeadraceError
from headrace.launch.apart import settle_there, submit_there
from headrace.launch.waiting import Heard, end_there, find_there, look_there, wait_there
from headrace.settings import Settings, find_line
from tests import kfp_server
from tests.kfp_server import API, RUN_ID, at

remote, settings = kfp_server.remote, kfp_server.settings
RUN = "run-1700000000000000"


def submitted(settings: Settings) -> str:
    return submit_there(settings, "incremental_train", "coupons", RUN, {})


def waited(settings: Settings, in_s: float = 30.0, **options: Any) -> Heard:
    return asyncio.run(
        wait_there(settings, RUN_ID, until_s=time.time() + in_s, poll_s=0.02, **options)
    )


def test_the_end_of_a_run_is_heard(remote, settings):
    assert submitted(settings) == RUN_ID
    heard = waited(settings)
    assert heard == Heard(RUN_ID, "ended", "SUCCEEDED")
    assert heard.succeeded
    assert Heard(**asdict(heard)) == heard  # as it travels through Airflow's database
    settle_there(settings, "incremental_train", "coupons", RUN, heard)
    assert records.records(settings, find_line(settings, "coupons")) == []


def test_a_run_is_submitted_once_under_its_name(remote, settings):
    assert [submitted(settings), submitted(settings)] == [RUN_ID, RUN_ID]
    assert remote.created == [f"coupons incremental {RUN}"]
    assert asyncio.run(find_there(settings, "coupons incremental run-2")) is None


def test_where_runs_are_not_listed_a_run_is_submitted(remote, settings, monkeypatch):
    original = remote.answer

    def no_list(method: str, path: str, query: Any, body: Any) -> Any:
        if (method, path) == ("GET", f"{API}/runs"):
            return {"runs": [{"display_name": None}]}
        return original(method, path, query, body)

    monkeypatch.setattr(remote, "answer", no_list)
    assert submitted(settings) == RUN_ID


def test_a_failed_run_is_recorded_with_the_task_that_failed(remote, settings):
    submitted(settings)
    remote.states = ["RUNNING", "FAILED"]
    remote.details = api.V2beta1RunDetails(
        task_details=[
            api.V2beta1PipelineTaskDetail(display_name="check-data", state="SUCCEEDED"),
            api.V2beta1PipelineTaskDetail(
                display_name="train", error=api.GoogleRpcStatus(code=9, message="OOMKilled")
            ),
        ]
    )
    heard = waited(settings)
    why = f"run {RUN_ID} ended FAILED on the cluster: train: OOMKilled"
    with pytest.raises(HeadraceError, match=f"^incremental_train coupons: {why}$"):
        settle_there(settings, "incremental_train", "coupons", RUN, heard)
    (recorded,) = records.records(settings, find_line(settings, "coupons"))
    assert (recorded.run, recorded.outcome, recorded.reasons) == (RUN, "failed", (why,))


def test_a_cancelled_run_is_told_apart(remote, settings):
    submitted(settings)
    remote.states = ["CANCELING", "CANCELED"]
    heard = waited(settings)
    assert heard.cancelled
    with pytest.raises(HeadraceError, match="ended CANCELED on the cluster"):
        settle_there(settings, "batch_score", "coupons", RUN, heard)


def test_a_token_that_is_refused_is_never_shown(remote, settings, tmp_path):
    submitted(settings)
    stranger = at(remote.url, tmp_path, "wrong-1984")
    heard = waited(stranger)
    assert (heard.how, heard.why) == (
        "refused", "401 Unauthorized: bad credentials: Bearer ***"
    )  # fmt: skip
    with pytest.raises(EnvironmentFault, match=r"is refused: 401.*HEADRACE_KFP_TOKEN") as told:
        settle_there(stranger, "incremental_train", "coupons", RUN, heard)
    assert "wrong-1984" not in str(told.value)
    assert records.records(settings, find_line(settings, "coupons")) == []  # it may go on


@pytest.mark.parametrize("trouble", ["dropped", "503", "page"])
def test_what_passes_is_waited_for(remote, settings, trouble):
    submitted(settings)
    remote.states = ["RUNNING", "SUCCEEDED"]
    if trouble == "dropped":
        remote.drop = 4
    elif trouble == "503":
        remote.status[f"{API}/runs/{RUN_ID}"] = 503
        threading.Timer(0.3, remote.status.clear).start()
    else:
        remote.page = "<html>Sign in</html>"
        threading.Timer(0.3, lambda: setattr(remote, "page", None)).start()
    assert waited(settings).succeeded
    assert remote.drop == 0


def test_a_connection_that_stays_lost_ends_nothing_there(remote, settings):
    submitted(settings)
    remote.drop = 10_000
    heard = waited(settings, lost_s=0.2)
    assert (heard.how, heard.run_id) == ("lost", RUN_ID)
    assert remote.terminated == []
    with pytest.raises(EnvironmentFault, match=f"run {RUN_ID} is lost: no answer"):
        settle_there(settings, "incremental_train", "coupons", RUN, heard)


def test_a_run_that_takes_too_long_is_told_to_end(remote, settings):
    submitted(settings)
    remote.states = ["RUNNING"]
    heard = waited(settings, in_s=0.1)
    assert heard == Heard(RUN_ID, "late", "RUNNING", "was told to end")
    assert remote.terminated == [RUN_ID]


def test_one_question_tells_how_a_run_stands(remote, settings):
    submitted(settings)
    remote.states = ["RUNNING"]
    assert asyncio.run(look_there(settings, RUN_ID)).how == "active"
    assert asyncio.run(end_there(settings, RUN_ID)) == "was told to end"
    gone = at("http://127.0.0.1:9", settings.home)
    assert asyncio.run(look_there(gone, RUN_ID)).how == "lost"
    assert asyncio.run(end_there(gone, RUN_ID)) == "could not be told to end"
