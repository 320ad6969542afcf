"""The path to a cluster, against a local server that speaks the published KFP v2beta1 API."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import kfp_server_api as api
import pytest
import yaml

from headrace import records
from headrace.errors import DeclarationError, EnvironmentFault, HeadraceError
from headrace.launch import RunResult, cluster, run_errand, run_pipeline
from headrace.settings import PROJECT, Settings, find_line
from tests import kfp_server
from tests.kfp_server import API, RUN_ID, TOKEN, at

remote, settings = kfp_server.remote, kfp_server.settings
PACKAGE = PROJECT / "pipelines" / "compiled" / "incremental_train.yaml"


def launched(settings: Settings, **options: Any) -> RunResult:
    return run_pipeline(settings, "incremental_train", "coupons", poll_s=0.02, **options)


def shared_storage(settings: Settings, outcome: records.Outcome) -> Callable[[Any], None]:
    """As when the components write to this home: their record is there when the run ends."""
    spec = find_line(settings, "coupons")

    def write(run: api.V2beta1Run) -> None:
        name = run.runtime_config["parameters"]["run"]
        cycle = records.started(name, "incremental")
        why = () if outcome == "promoted" else ("logloss_not_worse: +0.3",)
        ended = replace(cycle, outcome=outcome, stage="model", version="v000002", reasons=why)
        records.record(settings, spec, ended)

    return write


def test_a_run_is_submitted_awaited_and_its_record_read_back(remote, settings, capsys):
    remote.at_end = shared_storage(settings, "promoted")
    result = launched(settings)
    assert (result.outcome, result.version) == ("promoted", "v000002")
    assert result.endpoint_run == RUN_ID
    assert [e.display_name for e in remote.experiments] == ["Default"]
    assert remote.run is not None
    assert remote.run.experiment_id == "e-1"
    assert remote.run.display_name == f"coupons incremental {result.run}"
    assert remote.run.runtime_config["parameters"] == {"line": "coupons", "run": result.run}
    compiled = yaml.safe_load(PACKAGE.read_text())
    sent = remote.run.pipeline_spec
    sent = sent.get("pipeline_spec", sent)
    assert sent["pipelineInfo"]["name"] == compiled["pipelineInfo"]["name"]
    assert set(sent["components"]) == set(compiled["components"])
    images = [e["container"]["image"] for e in sent["deploymentSpec"]["executors"].values()]
    assert set(images) == {"ghcr.io/headrace/headrace-python:0.1.0"}
    assert not any(
        task.get("cachingOptions", {}).get("enableCache")
        for component in [sent["root"], *sent["components"].values()]
        for task in component.get("dag", {}).get("tasks", {}).values()
    )
    assert capsys.readouterr().out == ""  # `headrace run --json` prints JSON alone


def test_the_lines_resources_are_asked_of_the_cluster_alone(remote, settings, tmp_path):
    declared = (PROJECT / "lines" / "coupons.yaml").read_text()
    asked = "resources: {cpu: 500m, memory: 4G, accelerators: 2}\n"
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "coupons.yaml").write_text(f"{declared}\n{asked}")
    settings = replace(settings, lines_dir=tmp_path / "lines")
    assert launched(settings).outcome == "elsewhere"
    assert remote.run is not None
    sent = remote.run.pipeline_spec
    executors = sent.get("pipeline_spec", sent)["deploymentSpec"]["executors"]
    both = {
        "resourceCpuLimit": "500m", "resourceCpuRequest": "500m",
        "resourceMemoryLimit": "4G", "resourceMemoryRequest": "4G",
    }  # fmt: skip
    gpus = {"accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": "2"}}
    found = {name: one["container"]["resources"] for name, one in executors.items()}
    assert found.pop("exec-train") == both | gpus
    assert set(found) == {"exec-check-data", "exec-evaluate", "exec-promote"}
    assert all(resources == both for resources in found.values())


def test_a_rejection_on_shared_storage_is_a_rejection(remote, settings):
    remote.at_end = shared_storage(settings, "rejected")
    result = launched(settings)
    assert (result.outcome, result.stage) == ("rejected", "model")
    assert result.reasons == ("logloss_not_worse: +0.3",)


def test_a_record_on_the_clusters_own_storage_is_said_to_lie_elsewhere(remote, settings):
    result = launched(settings)
    assert (result.outcome, result.version, result.endpoint_run) == ("elsewhere", None, RUN_ID)
    assert result.reasons[0].startswith(f"submitted elsewhere: run {RUN_ID} succeeded")
    assert records.records(settings, find_line(settings, "coupons")) == []


def test_a_failed_run_names_the_task_and_is_recorded(remote, settings):
    remote.states = ["RUNNING", "FAILED"]
    remote.details = api.V2beta1RunDetails(
        task_details=[
            api.V2beta1PipelineTaskDetail(display_name="check-data", state="SUCCEEDED"),
            api.V2beta1PipelineTaskDetail(
                display_name="train",
                state="FAILED",
                error=api.GoogleRpcStatus(code=9, message="OOMKilled"),
            ),
        ]
    )
    result = launched(settings)
    why = f"run {RUN_ID} ended FAILED on the cluster: train: OOMKilled"
    assert (result.outcome, result.reasons) == ("failed", (why,))
    (recorded,) = records.records(settings, find_line(settings, "coupons"))
    assert (recorded.run, recorded.outcome, recorded.reasons) == (result.run, "failed", (why,))


def test_a_cancelled_run_is_a_failed_one_that_says_so(remote, settings):
    remote.states = ["RUNNING", "CANCELING", "CANCELED"]
    remote.error = api.GoogleRpcStatus(code=1, message="ended by ann")
    result = launched(settings)
    assert result.outcome == "failed"
    assert result.reasons == (f"run {RUN_ID} ended CANCELED on the cluster: ended by ann",)


def test_scores_are_a_run_without_a_record(remote, settings):
    given = {"start": "2026-11-01", "version": "v000002"}
    ended = run_errand(settings, "batch_score", "coupons", given, poll_s=0.02)
    assert ended.endpoint_run == RUN_ID
    assert remote.run is not None
    assert remote.run.display_name == f"coupons batch_score {ended.run}"
    assert remote.run.runtime_config["parameters"] == given | {"line": "coupons"}
    assert records.records(settings, find_line(settings, "coupons")) == []
    remote.states, remote.error = ["FAILED"], api.GoogleRpcStatus(code=9, message="disk full")
    with pytest.raises(HeadraceError, match=f"batch_score coupons: run {RUN_ID} .*: disk full"):
        run_errand(settings, "batch_score", "coupons", {}, poll_s=0.02)
    with pytest.raises(DeclarationError, match="batch_score takes no 'to'; use source, start"):
        run_errand(settings, "batch_score", "coupons", {"to": "2026-11-01"})


def test_a_refused_token_is_named_at_once_and_never_shown(remote, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG, logger="headrace")
    with pytest.raises(EnvironmentFault, match=r"401.*HEADRACE_KFP_TOKEN") as refused:
        launched(at(remote.url, tmp_path, token="wrong-1984"))
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    printed = capsys.readouterr()
    for text in (str(refused.value), caplog.text, printed.out, printed.err):
        assert "wrong-1984" not in text
    assert remote.requests == [("GET", f"{API}/healthz")]  # kfp.Client would ask for 25 s


def test_a_token_that_ends_while_the_run_goes_on_is_named(remote, settings, monkeypatch):
    remote.states = ["RUNNING"]
    original = remote._get_run

    def revoke() -> api.V2beta1Run:
        remote.token = "another"
        return original()

    monkeypatch.setattr(remote, "_get_run", revoke)
    with pytest.raises(EnvironmentFault, match=rf"run {RUN_ID}: 401") as refused:
        launched(settings)
    assert TOKEN not in str(refused.value)


def test_neither_the_token_nor_a_password_in_the_url_is_shown(tmp_path):
    settings = at("http://ann:hunter2@127.0.0.1:9", tmp_path)
    assert TOKEN not in repr(settings)
    with pytest.raises(EnvironmentFault) as refused:
        launched(settings)
    assert str(refused.value).startswith("http://127.0.0.1:9: no answer")
    assert "hunter2" not in str(refused.value)


def test_a_lost_connection_while_waiting_is_tried_again(remote, settings, caplog):
    caplog.set_level(logging.WARNING, logger="headrace")
    remote.states = ["RUNNING", "SUCCEEDED"]
    remote.drop = 8  # urllib3 tries four times by itself
    assert launched(settings).outcome == "elsewhere"
    assert remote.drop == 0
    assert "asking again" in caplog.text


def test_a_server_that_answers_503_for_a_while_is_tried_again(remote, settings, monkeypatch):
    run = f"{API}/runs/{RUN_ID}"
    remote.status[run] = 503
    threading.Timer(0.5, remote.status.clear).start()
    assert launched(settings).outcome == "elsewhere"
    assert remote.requests.count(("GET", run)) > 1


def test_a_sign_in_page_for_a_while_is_no_answer(remote, settings):
    remote.states = ["RUNNING", "SUCCEEDED"]
    original = remote._get_run

    def first() -> api.V2beta1Run:
        remote._get_run = original
        remote.page = "<html>Sign in</html>"
        threading.Timer(0.3, lambda: setattr(remote, "page", None)).start()
        return original()

    remote._get_run = first
    assert launched(settings).outcome == "elsewhere"


def test_a_connection_that_stays_lost_names_the_run_that_may_go_on(remote, settings):
    remote.drop = 10_000
    with pytest.raises(EnvironmentFault, match=rf"lost for 0 s .*run {RUN_ID} may go on there"):
        cluster.run_there(
            settings,
            PACKAGE,
            {"line": "coupons", "run": "run-1"},
            "coupons incremental run-1",
            timeout_s=30,
            poll_s=0.02,
            lost_s=0.2,
        )
    assert remote.terminated == []


def test_an_unreachable_endpoint_is_named_with_its_setting(tmp_path):
    with pytest.raises(
        EnvironmentFault, match=r"^http://127\.0\.0\.1:9: no answer .*HEADRACE_KFP_ENDPOINT"
    ):
        launched(at("http://127.0.0.1:9", tmp_path))
    assert not (tmp_path / "lines").exists()


def test_a_sign_in_page_is_no_api(remote, settings):
    remote.page = "<html>Sign in</html>"
    with pytest.raises(EnvironmentFault, match="sign-in page"):
        launched(settings)


def test_a_refused_submission_says_what_the_server_said(remote, settings):
    remote.status[f"{API}/runs"] = 400
    with pytest.raises(EnvironmentFault, match="400 Bad Request: upstream is away"):
        launched(settings)


def test_a_run_that_never_ends_is_told_to_end(remote, settings):
    remote.states = ["RUNNING"]
    with pytest.raises(EnvironmentFault, match=r"is RUNNING after 0 s and was told to end"):
        launched(settings, timeout_s=0.2)
    assert remote.terminated == [RUN_ID]


def test_whoever_interrupts_the_waiting_ends_the_run(remote, settings):
    remote.states = ["RUNNING"]

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cluster, "_ask", interrupt)
        launched(settings)
    assert remote.terminated == [RUN_ID]


def test_the_documented_upload_of_a_package_works(remote):
    blocks = re.findall(r"```bash\n(.*?)```", (PROJECT / "docs" / "api.md").read_text(), re.DOTALL)
    (line,) = (block for block in blocks if "bin/kfp " in block)
    result = subprocess.run(
        ["bash", "-euc", line],
        cwd=PROJECT,
        env=os.environ | {"HEADRACE_KFP_ENDPOINT": remote.url, "HEADRACE_KFP_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"p-1"' in result.stdout
    assert PACKAGE.read_bytes() in remote.uploaded
