"""A person's way through Airflow's UI, in a real Chromium: sign in, open, fill the form, green.

Run it against a stack that is up, with any DAGs of it, one after the other:
`HEADRACE_BROWSER_DAGS=full_train_coupons,tune_coupons pytest -m browser`. Without that variable
it starts a stack of its own with a small DAG. The screenshots lie below `out/screens/`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.settings import PROJECT, Settings, load_settings
from headrace.stack import AirflowClient, Service, running, services
from headrace.stack.airflow_home import USER, password

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

DAGS = tuple(filter(None, os.environ.get("HEADRACE_BROWSER_DAGS", "").split(",")))
SMALL_DAG = """
from datetime import UTC, datetime
from airflow.sdk import DAG, Param, task
with DAG("small", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None,
         params={"reason": Param(None, type=["null", "string"], title="Reason")}):
    @task
    def first() -> str:
        return "run-1"
    @task
    def second(run: str) -> None:
        print("saw", run)
    second(first())
"""


def only_airflow(settings: Settings, line: str, dags: Path) -> tuple[Service, ...]:
    every = services(settings, line, dags=dags)
    return tuple(service for service in every if service.name.startswith("airflow"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a running stack."""
    if DAGS:
        yield load_settings()
        return
    dags = tmp_path_factory.mktemp("dags")
    (dags / "small.py").write_text(SMALL_DAG)
    environ = {
        "HEADRACE_HOME": str(tmp_path_factory.mktemp("home")),
        "HEADRACE_AIRFLOW_PORT": "28080",
        "HEADRACE_SERVER_PORT": "28500",
        "HEADRACE_GRPC_PORT": "28502",
        "HEADRACE_COLLECTOR_PORT": "28501",
    }
    settings = load_settings(environ)
    with running(settings, "coupons", service_list=partial(only_airflow, dags=dags)):
        with AirflowClient(settings) as airflow:
            airflow.wait_for_dags({"small"})
            assert airflow.import_errors() == []
        yield settings


def saw(
    script: str, playwright: Path, settings: Settings, folder: str, *, limit_s: int, **more: Any
) -> dict[str, Any]:
    """What the script beside this file, given the way in and `more`, says that it saw."""
    screens = PROJECT / "out" / "screens" / folder
    screens.mkdir(parents=True, exist_ok=True)
    given = {
        "url": settings.airflow_url,
        "user": USER,
        "password": password(settings),
        "out": str(screens),
        "chromium": shutil.which("chromium"),
    }
    result = subprocess.run(
        ["node", str(Path(__file__).with_name(script)), json.dumps(given | more)],
        env=os.environ | {"NODE_PATH": str(playwright / "node_modules")},
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def two_hours() -> dict[str, str]:
    """The last two hours in UTC, by the titles of their fields."""
    to = datetime.now(UTC)
    return {"From": f"{to - timedelta(hours=2):%Y-%m-%dT%H:%M}", "To": f"{to:%Y-%m-%dT%H:%M}"}


@pytest.mark.parametrize("dag", DAGS or ["small"])
def test_a_person_signs_in_fills_the_form_and_sees_the_run_turn_green(stack, playwright, dag):
    with AirflowClient(stack) as airflow:
        asks = airflow._call("GET", f"/api/v2/dags/{dag}/details")["params"]
        params = {name: "from the browser" for name in ("reason",) if name in asks}
        moments = {title: moment for title, moment in two_hours().items() if title.lower() in asks}
        form = {"dag": dag, "params": params, "moments": moments, "timeout_s": 780}
        answer = saw("trigger.cjs", playwright, stack, dag, limit_s=840, **form)
        assert answer["state"] == "success"
        assert params.items() <= answer["conf"].items()
        told = {title: answer["conf"][title.lower()][:16] for title in moments}
        assert told == moments
        assert len(answer["screens"]) == 5
        assert set(airflow.task_states(dag, answer["run"]).values()) <= {"success", "skipped"}


def test_the_lines_page_opens_from_airflows_navigation_without_another_sign_in(stack, playwright):
    answer = saw("inside.cjs", playwright, stack, "inside", limit_s=300)
    assert (answer["where"], answer["refused"]) == ("/headrace/", [])
    # a stack of Airflow alone has no scoring server, which the page says; "locked" would be a 401
    assert answer["state"] in ("no answer", "serving")
