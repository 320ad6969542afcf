"""The few calls to Airflow's REST API that the demo, the stack and the tests make."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx

from headrace.errors import EnvironmentFault
from headrace.settings import Settings
from headrace.stack.airflow_home import USER, password

FINAL = frozenset({"success", "failed"})
# Airflow answers 500 when its database was busy for too long; each call may be made again
AGAIN_AFTER_S = (1.0, 4.0)


class AirflowClient:
    """Signed in as `admin`; signs in again by itself when the token has run out.

    Every call raises `EnvironmentFault` with Airflow's answer when it refuses, and when it
    cannot be reached.
    """

    def __init__(self, settings: Settings, timeout_s: float = 60.0):
        self._settings = settings
        # trust_env: a proxy of the machine must not see loopback calls
        self._http = httpx.Client(base_url=settings.airflow_url, timeout=timeout_s, trust_env=False)
        self._token: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run with these params now; returns its `dag_run_id`.

        The run is named here, so that a call made again starts no second one.
        """
        run_id = f"manual__{datetime.now(UTC).isoformat()}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf or {})}
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        """`queued`, `running`, `success` or `failed`."""
        return str(self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait(self, dag_id: str, run_id: str, timeout_s: float = 300.0, poll_s: float = 0.5) -> str:
        """Wait for the end of a run and return its state. Raises `EnvironmentFault` in the end."""
        deadline = time.monotonic() + timeout_s
        while (state := self.run_state(dag_id, run_id)) not in FINAL:
            if time.monotonic() >= deadline:
                raise EnvironmentFault(
                    f"run {run_id} of {dag_id} is still {state!r} after {timeout_s:.0f} s; "
                    f"look at {self._settings.airflow_url}/dags/{dag_id}/runs/{run_id}"
                )
            time.sleep(poll_s)
        return state

    def runs(self, dag_id: str, limit: int = 100) -> list[dict[str, Any]]:
        """The newest runs first, as Airflow describes them."""
        query = f"?limit={limit}&order_by=-run_after"
        return list(self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns{query}")["dag_runs"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """State of each task of a run; None where it has not been looked at yet."""
        answer = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task["state"] for task in answer["task_instances"]}

    def dag_ids(self) -> list[str]:
        """Ids of the parsed DAGs."""
        return [str(dag["dag_id"]) for dag in self._call("GET", "/api/v2/dags?limit=100")["dags"]]

    def import_errors(self) -> list[dict[str, Any]]:
        """DAG files that could not be imported, with their traceback."""
        return list(self._call("GET", "/api/v2/importErrors")["import_errors"])

    def wait_for_dags(self, dag_ids: set[str], timeout_s: float = 120.0) -> None:
        """Wait until these DAGs are parsed. Raises `EnvironmentFault` naming the missing ones."""
        deadline = time.monotonic() + timeout_s
        while missing := dag_ids - set(self.dag_ids()):
            if time.monotonic() >= deadline:
                errors = [str(error.get("filename")) for error in self.import_errors()]
                raise EnvironmentFault(
                    f"Airflow did not parse {sorted(missing)} within {timeout_s:.0f} s; "
                    f"files with import errors: {errors or 'none'}; run `airflow dags reserialize`"
                )
            time.sleep(0.5)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self._send(method, path, body, self._token or self._sign_in())
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            answer = self._send(method, path, body, self._sign_in())
        for wait_s in AGAIN_AFTER_S:
            if not answer.is_server_error:
                break
            time.sleep(wait_s)
            answer = self._send(method, path, body, self._token or self._sign_in())
            if method == "POST" and answer.status_code == httpx.codes.CONFLICT:
                return None  # the call that seemed to fail had started the run
        if answer.is_error:
            raise EnvironmentFault(
                f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}"
            )
        return answer.json()

    def _sign_in(self) -> str:
        body = {"username": USER, "password": password(self._settings)}
        answer = self._send("POST", "/auth/token", body, None)
        if answer.is_error:
            raise EnvironmentFault(
                f"Airflow refused the sign-in of {USER!r} ({answer.status_code}); another stack "
                f"may answer on {self._settings.airflow_url}: set HEADRACE_AIRFLOW_PORT"
            )
        self._token = str(answer.json()["access_token"])
        return self._token

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: str | None
    ) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            return self._http.request(method, path, json=body, headers=headers)
        except httpx.TransportError as problem:
            raise EnvironmentFault(
                f"no answer from Airflow at {self._settings.airflow_url} ({problem}); "
                "is the stack up? see `headrace status`"
            ) from problem
