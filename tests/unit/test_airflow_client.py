"""Airflow's database is busy for a moment: calls are made again, and start nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from headrace.errors import EnvironmentFault
from headrace.settings import load_settings
from headrace.stack import AirflowClient
from headrace.stack.airflow_client import AGAIN_AFTER_S

BUSY = httpx.Response(500, json={"detail": {"reason": "Database error"}})


@pytest.fixture
def client_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AirflowClient]:
    monkeypatch.setattr("headrace.stack.airflow_client.time.sleep", lambda seconds: None)
    monkeypatch.setattr("headrace.stack.airflow_client.password", lambda settings: "known")
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})

    def made(*answers: httpx.Response) -> AirflowClient:
        left = list(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/auth/token":
                return httpx.Response(201, json={"access_token": "token"})
            asked.append(json.loads(request.content))
            return left.pop(0)

        asked: list[dict[str, str]] = []
        client = AirflowClient(settings)
        client._http = httpx.Client(
            base_url=settings.airflow_url, transport=httpx.MockTransport(answer)
        )
        client.asked = asked  # type: ignore[attr-defined]
        return client

    return made


@pytest.mark.parametrize("then", [httpx.Response(200, json={}), httpx.Response(409, json={})])
def test_a_run_is_asked_for_again_under_the_same_name(client_of, then):
    client = client_of(BUSY, then)
    run = client.trigger("rollback_coupons", {"version": "v000001"})
    assert [one["dag_run_id"] for one in client.asked] == [run, run]


def test_a_name_that_is_taken_at_the_first_call_is_an_error(client_of):
    with pytest.raises(EnvironmentFault, match="409"):
        client_of(httpx.Response(409, json={})).trigger("rollback_coupons")


def test_a_database_that_stays_busy_is_told(client_of):
    client = client_of(*[BUSY] * (1 + len(AGAIN_AFTER_S)))
    with pytest.raises(EnvironmentFault, match="Database error"):
        client.trigger("rollback_coupons")
