"""The task that runs a pipeline on a cluster defers, goes on where an earlier attempt was, ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "HEADRACE"))}
    paths = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ |= {"AIRFLOW_HOME": str(home / "airflow"), "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-m", "tests.dags.deferring", str(home)],
        env=environ, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    line = next(row for row in result.stdout.splitlines() if row.startswith("ANSWER"))
    answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER"))
    return answer


pytestmark = pytest.mark.slow


def test_a_run_is_submitted_and_its_end_is_waited_for_elsewhere(told):
    green = told["green"]
    assert green["ended"].startswith("run-")
    assert green["trigger"] == "dags.shared.waiting.RunEnded"
    assert green["kept"] == ["run_id", "until_s"]
    assert not green["secret"]
    assert (green["created"], green["store"]) == (1, ["headrace_run", "kubeflow_run_id"])


def test_a_failed_run_is_tried_again_as_a_new_one(told):
    failed = told["failed"]
    assert failed["first"].startswith("AirflowException: incremental_train coupons: run ")
    assert "ended FAILED" in failed["first"]
    assert (failed["left"], failed["created"]) == ([], 2)
    assert failed["second"].startswith("run-")


def test_what_somebody_cancelled_is_not_tried_again(told):
    assert told["cancelled"]["ended"].startswith("AirflowFailException: ")
    assert "CANCELED" in told["cancelled"]["ended"]


def test_an_attempt_that_died_is_gone_on_with_and_nothing_is_submitted_twice(told):
    assert told["died"]["ended"].startswith("run-")
    assert told["died"]["created"] == 1


def test_an_endpoint_that_comes_back_serves_the_retry(told):
    assert "HEADRACE_KFP_ENDPOINT" in told["dead"]["first"]
    assert told["dead"]["second"].startswith("run-")
    assert told["dead"]["created"] == 1


def test_whoever_kills_the_task_ends_the_run(told):
    assert told["killed"]["terminated"] == [told["run_id"]] * 2


def test_the_watcher_tells_a_level_once_until_it_falls_and_survives_what_it_cannot_read(told):
    (path, kept), *samples = told["watched"]["told"]
    assert path == "dags.shared.arriving.SamplesWait"
    assert kept == {"line": "coupons", "enough": 5}
    assert samples == [5, 9]  # 6 was still the same level; 4, 2 and the torn one were below
