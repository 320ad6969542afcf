"""The alarm of a failed task reaches a hook, and a hook that is absent or dead harms nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import free_port

PROJECT = Path(__file__).resolve().parents[2]
TELL = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from types import SimpleNamespace
from dags.shared.notify import Alert
ti = SimpleNamespace(dag_id="watch_parity_coupons", run_id="r1", task_id="compare", try_number=3,
                     log_url="http://127.0.0.1/log")
for connection in sys.argv[1:]:
    os.environ.pop("AIRFLOW_CONN_HEADRACE_ALERTS", None)
    if connection:
        os.environ["AIRFLOW_CONN_HEADRACE_ALERTS"] = connection
    Alert().notify({"ti": ti, "exception": ValueError("2 mismatches")})
    print("ENDED", flush=True)
"""


@pytest.fixture(scope="module")
def hook() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    heard: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            token = self.headers["Authorization"]
            heard.append({"path": self.path, "token": token, "told": json.loads(body)})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port, heard
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def logged(hook: tuple[int, Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the alarm logs with a hook that listens, without one, and with one that is dead."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")}
    environ |= {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")), "NO_PROXY": "127.0.0.1"}
    connections = [connection(hook[0]), "", connection(free_port())]
    said = subprocess.run(
        [sys.executable, "-c", TELL, *connections],
        env=environ, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    *parts, rest = said.stdout.split("ENDED\n")
    assert (len(parts), rest) == (3, "")
    return parts


def connection(port: int) -> str:
    hook = {"conn_type": "http", "schema": "http", "host": "127.0.0.1", "port": port}
    return json.dumps(hook | {"password": "very-secret", "extra": {"path": "/hooks/ml"}})


@pytest.mark.slow
def test_a_failure_is_told_to_the_hook_with_its_reason(logged, hook):
    assert hook[1] == [
        {
            "path": "/hooks/ml",
            "token": "Bearer very-secret",
            "told": {
                "dag": "watch_parity_coupons",
                "run": "r1",
                "task": "compare",
                "attempt": 3,
                "reason": "2 mismatches",
                "log": "http://127.0.0.1/log",
            },
        }
    ]
    assert "compare of watch_parity_coupons, run r1: 2 mismatches" in logged[0]


def test_without_a_hook_the_log_has_it(logged):
    assert "compare of watch_parity_coupons, run r1: 2 mismatches" in logged[1]
    assert "nobody else is told" in logged[1]


def test_a_dead_hook_is_logged_and_ends_nothing(logged):
    assert "not delivered (ConnectError)" in logged[2]


def test_the_token_is_in_no_log(logged):
    assert "very-secret" not in "".join(logged)


LATE = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from dags.shared.lateness import late_after, tell_late
from datetime import timedelta
told = late_after(timedelta(minutes=20)).callback
assert (told.path, told.kwargs) == ("dags.shared.lateness.tell_late", {"after_s": 1200.0}), told
run = {"dag_run": {"dag_id": "full_train_coupons", "dag_run_id": "r2"}}
for connection in sys.argv[1:]:
    os.environ["AIRFLOW_CONN_HEADRACE_ALERTS"] = connection
    asyncio.run(tell_late(**told.kwargs, context=run))
"""


@pytest.mark.slow
def test_a_late_run_is_told_while_it_goes_on_and_a_dead_hook_harms_nothing(hook, tmp_path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")}
    environ |= {"AIRFLOW_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    said = subprocess.run(
        [sys.executable, "-c", LATE, connection(hook[0]), connection(free_port())],
        env=environ, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    reason = "not over 1200 s after it was queued"
    told = {"dag": "full_train_coupons", "run": "r2", "task": None, "reason": reason}
    assert hook[1][-1] == {"path": "/hooks/ml", "token": "Bearer very-secret", "told": told}
    assert f"late: run r2 of full_train_coupons: {reason}" in said.stdout
    assert "not delivered (ConnectError)" in said.stdout
    assert "very-secret" not in said.stdout + said.stderr
