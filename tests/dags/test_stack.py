"""The stack with small stand-ins for its services: start, refuse, restart, end, leave nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from headrace import contest, guard
from headrace.atomic import write_json
from headrace.errors import DeclarationError, EnvironmentFault
from headrace.line import LineStore
from headrace.scoring import pulse
from headrace.settings import PROJECT, Settings, load_settings
from headrace.stack import Service, down, running, services, status, up
from headrace.stack import lifecycle as lifecycle_module
from headrace.stack.processes import stack_processes
from tests.campaign import free_port

ANSWER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def quiet(_text: str) -> None:
    return


def answering(name: str, port: int, wave: int = 0) -> Service:
    def ready(_since: datetime) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).is_success
        except httpx.TransportError:
            return False

    return Service(name, (sys.executable, "-c", ANSWER, str(port)), wave, ready)


def two_services(settings: Settings, _line: str) -> tuple[Service, ...]:
    return (
        answering("ingest", settings.collector_port),
        answering("serve", settings.server_port, wave=1),
    )


def dying_service(settings: Settings, _line: str) -> tuple[Service, ...]:
    command = (sys.executable, "-c", "raise SystemExit('no such model')")
    broken = Service("serve", command, 1, lambda _since: False)
    return (answering("ingest", settings.collector_port), broken)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = load_settings(
        {
            "HEADRACE_HOME": str(tmp_path / "home with space"),
            "HEADRACE_SERVER_PORT": str(free_port()),
            "HEADRACE_GRPC_PORT": str(free_port()),
            "HEADRACE_COLLECTOR_PORT": str(free_port()),
            "HEADRACE_AIRFLOW_PORT": str(free_port()),
        }
    )
    yield made
    down(made, say=quiet)


def states(settings: Settings) -> dict[str, str]:
    found = status(settings, service_list=two_services)["services"]
    return {service["name"]: service["state"] for service in found}


def crown(settings: Settings, watermark_us: int) -> None:
    """A champion of no model, that learned events up to that moment."""
    store = LineStore(settings.line_store_url("coupons"), "coupons")
    version = store.publish(
        {"w": np.zeros(2, np.float32)}, parent=None, from_tick=0, to_tick=0, excluded=[],
        watermark_us=watermark_us, event_at_us=1, feature_service="coupons_v1", code="test",
        rows=0, metrics={},
    )  # fmt: skip
    store.advance(None, version.version, "promote", "test")


def wait_for(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.e2e
def test_up_returns_when_all_is_healthy_and_down_leaves_nothing(settings):
    stack = up(settings, "coupons", service_list=two_services, say=quiet)
    assert stack.boot_s > 0
    assert states(settings) == {"ingest": "healthy", "serve": "healthy"}
    assert down(settings, say=quiet)
    assert not stack_processes(settings.home)
    assert not (settings.home / "run" / "stack.json").exists()
    assert not down(settings, say=quiet)


@pytest.mark.e2e
def test_a_second_stack_in_the_same_home_is_refused(settings):
    with running(settings, "coupons", service_list=two_services, say=quiet):
        with pytest.raises(EnvironmentFault, match=r"already running.*make down"):
            up(settings, "coupons", service_list=two_services, say=quiet)
        assert states(settings) == {"ingest": "healthy", "serve": "healthy"}
        told = status(settings, service_list=two_services)
        assert (told["champion"], told["staleness_s"]) == (None, None)
        crown(settings, watermark_us=(time.time_ns() - 5 * 10**9) // 1_000)
        told = status(settings, service_list=two_services)
        assert told["champion"] == "v000001"
        assert told["staleness_s"] >= 5
    assert not stack_processes(settings.home)


def test_a_taken_port_is_named_with_its_setting(settings):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", settings.airflow_port))
        holder.listen()
        with pytest.raises(
            EnvironmentFault, match=rf"{settings.airflow_port}.*HEADRACE_AIRFLOW_PORT"
        ):
            up(settings, "coupons", service_list=two_services, say=quiet)
    assert not stack_processes(settings.home)
    assert not (settings.home / "run" / "stack.json").exists()


def test_a_full_disk_is_named(settings, monkeypatch):
    monkeypatch.setattr(lifecycle_module, "MIN_FREE_BYTES", shutil.disk_usage("/").total * 1000)
    with pytest.raises(EnvironmentFault, match=r"GiB free.*HEADRACE_HOME"):
        up(settings, "coupons", service_list=two_services, say=quiet)
    assert not settings.home.exists()


def test_an_unknown_line_is_named(settings):
    with pytest.raises(DeclarationError, match="candles"):
        up(settings, "candles", service_list=two_services, say=quiet)
    assert not settings.home.exists()


@pytest.mark.e2e
def test_a_service_that_keeps_dying_ends_the_start_with_its_last_words(settings):
    with pytest.raises(EnvironmentFault, match=r"(?s)serve keeps dying.*no such model"):
        up(settings, "coupons", service_list=dying_service, say=quiet)
    assert not stack_processes(settings.home)


@pytest.mark.e2e
def test_a_killed_service_comes_back(settings):
    with running(settings, "coupons", service_list=two_services, say=quiet):
        first = status(settings, service_list=two_services)["services"][0]["pid"]
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: states(settings)["ingest"] == "healthy")
        assert status(settings, service_list=two_services)["services"][0]["pid"] != first


@pytest.mark.e2e
def test_down_ends_strays_and_what_outlived_a_killed_supervisor(settings):
    stack = up(settings, "coupons", service_list=two_services, say=quiet)
    stray = subprocess.Popen(
        [sys.executable, "-c", "import signal,time\n"
         "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"],
        env=stack.environ(settings),
        start_new_session=True,
    )  # fmt: skip
    for pid, command in stack_processes(settings.home).items():
        if "circus" in command:
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not status(settings, service_list=two_services)["supervised"])
    assert len(stack_processes(settings.home)) == 3
    assert down(settings, say=quiet)
    assert stray.wait(5) == -signal.SIGKILL
    assert not stack_processes(settings.home)


STARTER = """
import signal
import sys
from datetime import UTC, datetime, timedelta
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # where pytest's own parent ignores it
import test_stack
from headrace.settings import load_settings
from headrace.stack import up
slow = "slow" in sys.argv
def services(settings, line):
    every = test_stack.two_services(settings, line)
    if slow:
        from dataclasses import replace
        every = tuple(replace(one, ready=lambda since: False) for one in every)
    return every
up(load_settings(), "coupons", foreground=True, service_list=services)
"""


def start_in_a_process(settings: Settings, *flags: str) -> subprocess.Popen[bytes]:
    environ = dict(os.environ) | {
        "HEADRACE_HOME": str(settings.home),
        "HEADRACE_SERVER_PORT": str(settings.server_port),
        "HEADRACE_GRPC_PORT": str(settings.grpc_port),
        "HEADRACE_COLLECTOR_PORT": str(settings.collector_port),
        "HEADRACE_AIRFLOW_PORT": str(settings.airflow_port),
    }
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(Path(__file__).parent), *flags], env=environ
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("flags", [(), ("slow",)], ids=["running", "starting"])
@pytest.mark.e2e
def test_a_signal_leaves_no_process_behind(settings, number, flags):
    starter = start_in_a_process(settings, *flags)
    wait_for(lambda: len(stack_processes(settings.home)) >= (2 if flags else 3))
    if not flags:
        wait_for(lambda: set(states(settings).values()) == {"healthy"})
    starter.send_signal(number)
    time.sleep(0.2)
    starter.send_signal(number)  # an impatient second one changes nothing
    assert starter.wait(30) != 0
    assert not stack_processes(settings.home)


@pytest.mark.e2e
def test_after_the_starter_was_killed_down_works_and_a_new_start_too(settings):
    starter = start_in_a_process(settings)
    wait_for(lambda: states(settings) == {"ingest": "healthy", "serve": "healthy"})
    starter.kill()
    starter.wait()
    assert len(stack_processes(settings.home)) == 3
    with pytest.raises(EnvironmentFault, match="already running"):
        up(settings, "coupons", service_list=two_services, say=quiet)
    assert down(settings, say=quiet)
    with running(settings, "coupons", service_list=two_services, say=quiet):
        assert states(settings) == {"ingest": "healthy", "serve": "healthy"}


@pytest.mark.e2e
def test_what_a_power_cut_left_is_cleaned_up(settings):
    up(settings, "coupons", service_list=two_services, say=quiet)
    for pid in stack_processes(settings.home):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not stack_processes(settings.home))
    assert (settings.home / "run" / "stack.json").exists()
    assert not status(settings, service_list=two_services)["running"]
    with running(settings, "coupons", service_list=two_services, say=quiet):
        assert states(settings) == {"ingest": "healthy", "serve": "healthy"}


def watching(tmp_path: Path) -> Settings:
    """Settings of a home whose line declares a guard, a conductor of races and nearline scores."""
    line = (PROJECT / "lines" / "coupons.yaml").read_text()
    assert "cadence:\n" in line
    added = "guard: {every: 1s}\nnearline: {of: served, every: 1s}\ncadence:\n  race: 1s\n"
    line = line.replace("cadence:\n", added)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "coupons.yaml").write_text(line)
    ports = ("SERVER", "GRPC", "COLLECTOR", "AIRFLOW")
    return load_settings(
        {"HEADRACE_HOME": str(tmp_path / "home"), "HEADRACE_LINES_DIR": str(tmp_path / "lines")}
        | {f"HEADRACE_{name}_PORT": str(free_port()) for name in ports}
    )


WATCHERS = ("guard", "race", "score-log")


def watchers(settings: Settings, line: str) -> tuple[Service, ...]:
    return tuple(one for one in services(settings, line) if one.name in WATCHERS)


def test_watchers_are_services_where_the_line_declares_them(settings, tmp_path):
    assert watchers(settings, "coupons") == ()
    declared = watching(tmp_path)
    by_name = {one.name: one for one in watchers(declared, "coupons")}
    assert by_name["guard"].command[1:] == ("guard", "--line", "coupons")
    assert by_name["race"].command[1:] == ("race", "run", "--line", "coupons")
    assert by_name["score-log"].command[1:] == ("score-log", "--line", "coupons")
    now = datetime.now(UTC)
    beats = {
        "guard": guard.beat(declared, "coupons"),
        "race": contest.beat(declared, "coupons"),
        "score-log": pulse.beat(declared.line_home("coupons"), "served"),
    }
    for name, path in beats.items():
        ready = by_name[name].ready
        assert not ready(now)
        write_json(path, {"at": (now + timedelta(seconds=1)).isoformat()})
        assert ready(now)
        assert not ready(now + timedelta(seconds=2))  # started anew since
        write_json(path, {"at": (now - timedelta(minutes=3)).isoformat()})
        assert not ready(now - timedelta(minutes=5))  # it hangs


@pytest.mark.e2e
def test_watchers_run_in_the_stack_and_its_status_shows_them(tmp_path):
    settings = watching(tmp_path)
    with running(settings, "coupons", service_list=watchers, say=quiet):
        found = status(settings, service_list=watchers)["services"]
        assert {one["name"]: one["state"] for one in found} == dict.fromkeys(WATCHERS, "healthy")
    assert not stack_processes(settings.home)
