"""The scoring server's page in a real Chromium: its clock ticks, a new version comes by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from headrace.declaration import LineSpec
from headrace.line import LineStore
from headrace.line.races import Races
from headrace.quarantine import Quarantine
from headrace.race.arms import Arm, Race
from headrace.serving.app import create_app
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.store import Store
from tests.campaign import free_port
from tests.serving import advance, publish, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def judged(settings: Settings, spec: LineSpec, *, passed: bool, reason: str = "") -> str:
    """A version that has learned up to now, with its verdict."""
    version = publish(settings, spec, 1.0, time.time_ns() // 1000)
    reasons = [reason] if reason else []
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    store.put_verdict(version, {"passed": passed, "reasons": reasons})
    return version


@pytest.fixture
def line(tmp_path: Path) -> tuple[Settings, LineSpec]:
    """The coupons with a champion, a refused version, a refused window, and a race."""
    (tmp_path / "lines").mkdir()
    shutil.copy(PROJECT / "lines" / "coupons.yaml", tmp_path / "lines")
    settings = load_settings(
        {
            "HEADRACE_HOME": str(tmp_path / "home"),
            "HEADRACE_LINES_DIR": str(tmp_path / "lines"),
            "HEADRACE_FEATURE_REPO": str(PROJECT / "feature_repo"),
            "HEADRACE_SERVER_PORT": str(free_port()),
        }
    )
    Store(settings).apply()
    spec = find_line(settings, "coupons")
    advance(settings, spec, judged(settings, spec, passed=True))
    judged(settings, spec, passed=False, reason="logloss_no_worse: <b>worse</b> by 0.3 nats")
    Quarantine(settings.line_home("coupons")).add(3, 9, ["label_rate_within: 0.61"])
    races = Races(LineStore(settings.line_store_url("coupons"), "coupons"))
    arm = Arm(name="calm", version="v000001", share=0.1)
    races.append(None, Race(name="r", entity="user_id", arms=(arm,)).with_slots(None), "start", "t")
    standing = {
        "gain": 0.0014, "low": -0.0007, "high": 0.0035, "requests": 412, "rows": 812,
        "logloss": 0.33, "champion_logloss": 0.3314, "decision": "wait", "reason": "undecided",
    }  # fmt: skip
    races.put_look("r", {"rows": 812, "open_rows": 61, "arms": {"calm": standing}, "earned": {}})
    return settings, spec


@contextmanager
def served(settings: Settings, spec: LineSpec) -> Iterator[None]:
    """The line served, champion and arms loaded."""
    app = create_app(settings, spec)
    config = uvicorn.Config(app, port=settings.server_port, log_level="warning")
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run)
    thread.start()
    until(lambda: serving.started and app.state.models.ready and app.state.arms.about(), 60)
    try:
        yield
    finally:
        serving.should_exit = True
        thread.join()


@contextmanager
def browsing(playwright: Path, url: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The browser's script on its way; its screenshots lie in `out/screens/`."""
    screens = PROJECT / "out" / "screens"
    screens.mkdir(parents=True, exist_ok=True)
    given = {"url": url, "out": str(screens), "chromium": shutil.which("chromium")} | more
    with subprocess.Popen(
        ["node", str(Path(__file__).with_name("page.cjs")), json.dumps(given)],
        env=os.environ | {"NODE_PATH": str(playwright / "node_modules")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        yield script


def told(script: subprocess.Popen[str]) -> dict[str, Any]:
    """What the script says at its end."""
    said, problem = script.communicate(timeout=200)
    assert script.returncode == 0, problem
    found: dict[str, Any] = json.loads(said)
    return found


def test_the_page_ticks_and_shows_a_new_version_without_a_reload(line, playwright):
    settings, spec = line
    with (
        served(settings, spec),
        browsing(playwright, settings.server_url, next="v000003") as script,
    ):
        assert script.stdout is not None
        assert script.stdout.readline() == "open\n", script.communicate()
        advance(settings, spec, judged(settings, spec, passed=True))
        saw = told(script)
    assert saw["problems"] == []  # of the script, and what the content policy would refuse
    assert saw["first"] == "v000001"
    ticks = [float(text.removesuffix("s")) for text in saw["ticks"]]
    assert ticks == sorted(ticks)
    assert ticks[-1] >= ticks[0] + 1
    assert saw["kept"]
    assert float(saw["after"].removesuffix("s")) < ticks[-1] + 2  # the clock began anew
    assert saw["said"] == "v000003 serves now"
    assert saw["wide"] == [0, 0, 0]  # nobody scrolls sideways, at 1280, 360 and 320 pixels
    shown = " ".join(saw["shown"].split())
    for text in (
        "v000003 predicts click",
        "v000002 refused",
        "logloss_no_worse: <b>worse</b> by 0.3 nats",
        "champion 90 % v000003 calm 10 % v000001",
        "gain +0.0014 nats (\u22120.0007 to +0.0035) over 412 requests",
        "ticks 3 to 8",
        "label_rate_within: 0.61",
    ):
        assert text in shown


def test_a_page_that_is_locked_shows_nothing_before_the_token(line, playwright):
    settings, spec = line
    token = "admin-0123456789abcdef"
    with (
        served(replace(settings, admin_token=token), spec),
        browsing(playwright, settings.server_url, token=token) as script,
    ):
        assert told(script) == {"hidden": True, "locked": False}
