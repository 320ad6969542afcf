"""The learner's attendant: well, dead, hung, failing; restarted by the supervisor that has it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from headrace.errors import EnvironmentFault
from headrace.line import LineStore
from headrace.settings import Settings, find_line, load_settings
from headrace.stack import Service, running, supervisor
from headrace.stack.attend import SERVICE, ailment, attend
from tests.campaign import free_port

# Answers /health with what a file says, and beats once at its start.
LEARNER = """
import http.server, json, pathlib, sys, time
home, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
beat = home / "learner" / "beat.json"
beat.parent.mkdir(parents=True, exist_ok=True)
beat.write_text(json.dumps({"at_us": time.time_ns() // 1000}))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if (home / "failing").exists() else 200)
        self.end_headers()
        self.wfile.write(b'{"status": "told"}')
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    ports = ("SERVER", "GRPC", "COLLECTOR", "AIRFLOW", "LEARNER")
    return load_settings(
        {"HEADRACE_HOME": str(tmp_path / "home")}
        | {f"HEADRACE_{name}_PORT": str(free_port()) for name in ports}
    )


def learner(settings: Settings, line: str) -> tuple[Service, ...]:
    home = settings.line_home(line)
    command = (sys.executable, "-c", LEARNER, str(home), str(settings.learner_port))

    def ready(_since: datetime) -> bool:
        try:
            httpx.get(f"{settings.learner_url}/health", trust_env=False)
        except httpx.TransportError:
            return False
        return True

    return (Service(SERVICE, command, 0, ready),)


def crown(settings: Settings) -> None:
    store = LineStore(settings.line_store_url("coupons"), "coupons")
    version = store.publish(
        {"w": np.zeros(2, np.float32)}, parent=None, from_tick=0, to_tick=0, excluded=[],
        watermark_us=1, event_at_us=1, feature_service="coupons_v1", code="test", rows=0,
        metrics={},
    )  # fmt: skip
    store.advance(None, version.version, "promote", "test")


def hang(settings: Settings) -> None:
    """As a learner leaves it that has not come back from a look for two minutes."""
    beat = settings.line_home("coupons") / "learner" / "beat.json"
    beat.write_text(json.dumps({"at_us": (time.time_ns() - 120 * 10**9) // 1000}))


def test_a_learner_that_nobody_supervises_is_named_with_the_remedy(settings):
    spec = find_line(settings, "coupons")
    assert ailment(settings, spec) == "the learner of 'coupons' does not answer (ConnectError)"
    with pytest.raises(EnvironmentFault, match=r"no stack of .* `headrace up --line coupons`"):
        attend(settings, spec)


@pytest.mark.e2e
def test_a_learner_that_is_not_well_is_started_again(settings):
    spec, home = find_line(settings, "coupons"), settings.line_home("coupons")
    with running(settings, "coupons", service_list=learner, say=lambda _text: None) as stack:
        assert attend(settings, spec) == "healthy"
        hang(settings)
        assert ailment(settings, spec) is None  # no champion yet: it has nothing to do
        crown(settings)
        said = ailment(settings, spec)
        assert said is not None
        assert "is silent for 1" in said
        first = supervisor.pids(stack.endpoint, [SERVICE])[SERVICE]
        assert attend(settings, spec) == "restarted"
        second = supervisor.pids(stack.endpoint, [SERVICE])[SERVICE]
        assert second != first

        supervisor.ask(stack.endpoint, "stop", name=SERVICE)  # somebody stopped it
        while Path(f"/proc/{second}").exists():
            time.sleep(0.1)
        assert attend(settings, spec) == "restarted"

        (home / "failing").touch()
        with pytest.raises(
            EnvironmentFault, match=r"(?s)is failing: .*after a restart .*learn.log"
        ):
            attend(settings, spec, wait_s=1.0)
        alien = replace(settings, home=settings.home / "elsewhere")
        with pytest.raises(EnvironmentFault, match="no stack of"):
            attend(alien, spec)
