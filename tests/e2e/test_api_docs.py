"""Every curl line of docs/api.md is run, in its order, against a whole stack."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from headrace.declaration import LineSpec
from headrace.line import LineStore
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.stack import AirflowClient, running
from tests.campaign import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DOCUMENT = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
MARK = "=== end of a block ==="


def publish(settings: Settings, spec: LineSpec, versions: int = 2) -> None:
    """Untrained versions, each promoted: what a rollback and a score need."""
    from headrace.model import Model

    store = LineStore(settings.line_store_url(spec.line), spec.line)
    state = Model(spec.model, spec.seed).state()
    for number in range(versions):
        state["classes"] = np.array([10.0 + number, 10.0])
        version = store.publish(
            state,
            parent=None,
            from_tick=0,
            to_tick=0,
            excluded=[],
            watermark_us=1_750_000_000_000_000 + number,
            event_at_us=1_750_000_000_000_000,
            feature_service=spec.feature_service,
            code="test",
            rows=0,
            metrics={},
        )
        store.advance(store.champion(), version.version, "promote", "test")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A whole stack of the line `coupons` with two versions and no traffic."""
    if shutil.which("curl") is None:
        pytest.skip("curl is missing; apt-get install curl")
    root = tmp_path_factory.mktemp("api")
    (root / "lines").mkdir()
    shutil.copy(PROJECT / "lines" / "coupons.yaml", root / "lines")
    settings = load_settings(
        {
            "HEADRACE_HOME": str(root / "home"),
            "HEADRACE_LINES_DIR": str(root / "lines"),
            "HEADRACE_AIRFLOW_PORT": str(free_port()),
            "HEADRACE_SERVER_PORT": str(free_port()),
            "HEADRACE_GRPC_PORT": str(free_port()),
            "HEADRACE_COLLECTOR_PORT": str(free_port()),
        }
    )
    publish(settings, find_line(settings, "coupons"))
    with running(settings, "coupons"):
        with AirflowClient(settings) as airflow:
            verbs = ("incremental_train", "rollback", "watch_parity")
            verbs = (*verbs, "backfill_features", "batch_score")
            airflow.wait_for_dags({f"{verb}_coupons" for verb in verbs})
        deadline = time.monotonic() + 60
        while not httpx.get(f"{settings.server_url}/v2/health/ready", trust_env=False).is_success:
            assert time.monotonic() < deadline, "no champion serves"
            time.sleep(0.2)
        yield settings


@pytest.fixture(scope="module")
def said(stack: Settings) -> list[str]:
    """What each block of the document printed."""
    script = f"\necho '{MARK}'\n".join([*BLOCKS, ""])
    for documented, real in {
        "http://127.0.0.1:8080": stack.airflow_url,
        "http://127.0.0.1:8500": stack.server_url,
        "http://127.0.0.1:8501": stack.collector_url,
        "out/stack": str(stack.home),
    }.items():
        assert documented in script
        script = script.replace(documented, real)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
        cwd=PROJECT,
        env=os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    printed = result.stdout.split(f"{MARK}\n")
    assert len(printed) == len(BLOCKS) + 1
    return printed[:-1]


def block(said: list[str], text: str) -> str:
    """What the one block printed that holds this text."""
    (found,) = (number for number, lines in enumerate(BLOCKS) if text in lines)
    return said[found]


def answer(said: list[str], text: str) -> Any:
    return json.loads(block(said, text))


def test_every_call_of_the_document_is_in_a_block_that_runs():
    shown = [line for line in DOCUMENT.splitlines() if re.search(r"\b(call|curl)\s+[-\"$]", line)]
    run = "".join(BLOCKS)
    assert len(shown) > 8
    assert all(line in run for line in shown)


def test_both_forms_score_alike(said):
    short = answer(said, '"category": "toys"')
    assert (short["request_id"], short["version"]) == ("r-100", "v000002")
    assert [one["impression_id"] for one in short["scores"]] == ["r-100:0", "r-100:1"]
    tensors = answer(said, "/infer")
    assert tensors["model_version"] == "v000002"
    assert tensors["outputs"][0]["data"] == [one["score"] for one in short["scores"]]
    pinned = answer(said, "x-headrace-version")
    assert (pinned["version"], pinned["arm"]) == ("v000001", "pinned")
    assert answer(said, "models/coupons/ready")["version"] == "v000002"


def test_events_are_taken_and_counted(said):
    assert answer(said, "/v1/events") == {"accepted": 2, "malformed": 0}
    status = answer(said, "$COLLECTOR/v1/status")
    assert (status["line"], status["malformed"]) == ("coupons", 0)
    assert status["head"] >= 2
    figures = block(said, "$COLLECTOR/metrics").splitlines()
    assert "headrace_ingest_events_accepted_total 2.0" in figures


def test_the_server_tells_of_itself(said):
    status = answer(said, "$SERVER/v1/status")
    assert (status["line"], status["champion"]["version"]) == ("coupons", "v000002")
    assert status["requests"]["answered"] >= 3
    figures = block(said, "$SERVER/metrics")
    assert 'headrace_serving_requests_total{outcome="answered",protocol="http"}' in figures


def test_a_run_is_triggered_and_its_state_read(said):
    assert block(said, "state incremental_train_coupons") == "success\n"
    tasks = answer(said, '/taskInstances"')["task_instances"]
    assert {task["task_id"]: task["state"] for task in tasks} == {
        "plan": "success",
        "run_pipeline": "skipped",
        "report_outcome": "skipped",
    }


def test_the_rollback_moves_the_champion(said, stack):
    assert block(said, "state rollback_coupons") == "success\n"
    champion = LineStore(stack.line_store_url("coupons"), "coupons").champion()
    assert champion is not None
    assert (champion.version, champion.action) == ("v000001", "rollback")
    assert champion.reason == "by REST"
    assert answer(said, "hitlDetails")["chosen_options"] == ["Approve"]


def test_parity_is_watched_and_features_are_backfilled(said):
    assert block(said, "state watch_parity_coupons") == "success\nsuccess\n"
    assert answer(said, "/api/v2/backfills")["dag_id"] == "backfill_features_coupons"


def test_an_interval_is_scored_whole_though_nothing_was_shown_in_it(said, stack):
    assert block(said, "state batch_score_coupons") == "success\n"
    folder = stack.line_home("coupons") / "scores" / "batch"
    scores = folder / "20260501T000000Z-20260502T000000Z.parquet"
    assert pq.read_metadata(scores).num_rows == 0


def test_an_alarm_has_an_address(said):
    assert answer(said, "/api/v2/connections")["connection_id"] == "headrace_alerts"


def test_the_schedule_is_paused(said):
    assert answer(said, "is_paused")["is_paused"] is True
