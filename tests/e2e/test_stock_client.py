"""`headrace serve` asked by NVIDIA's `tritonclient` from an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.store import Store
from tests.campaign import free_port, wait_for
from tests.serving import WATERMARK_US, advance, publish

pytestmark = pytest.mark.e2e

CLIENT = "tritonclient[http,grpc]>=2.60"
UNREACHABLE = ("Failed to fetch", "dns error", "Could not connect", "error sending request")


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the client, and nothing of Headrace."""
    own = PROJECT / "out" / "uv" / "bin" / "uv"
    uv = str(own) if own.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed; run `make setup`")
    folder = tmp_path_factory.mktemp("client")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--python", str(python), CLIENT]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    if done.returncode and any(reason in done.stderr for reason in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A server of `coupons` with two versions, the first of which is champion."""
    environ = {
        "HEADRACE_HOME": str(tmp_path_factory.mktemp("home")),
        "HEADRACE_SERVER_PORT": str(free_port()),
        "HEADRACE_GRPC_PORT": str(free_port()),
    }
    settings = load_settings(environ)
    Store(settings).apply()
    spec = find_line(settings, "coupons")
    publish(settings, spec, 1.0, WATERMARK_US)
    publish(settings, spec, 3.0, WATERMARK_US)
    advance(settings, spec, "v000001")
    command = [str(Path(sys.executable).with_name("headrace")), "serve", "--line", "coupons"]
    process = subprocess.Popen(command, env=os.environ | environ)
    try:
        wait_for(lambda: _ready(settings) or process.poll() is not None, 300)
        yield settings
    finally:
        process.terminate()
        assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn ends as it was told


def _ready(settings: Settings) -> bool:
    try:
        answer = httpx.get(f"{settings.server_url}/v2/health/ready", trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


@pytest.fixture(scope="module")
def seen(client_python: Path, served: Settings) -> dict[str, Any]:
    """What the client printed."""
    script = Path(__file__).with_name("triton_client.py")
    addresses = [f"127.0.0.1:{port}" for port in (served.server_port, served.grpc_port)]
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [client_python, script, *addresses, "coupons"],
        check=False,
        env=plain,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def short_scores(settings: Settings, **headers: str) -> list[float]:
    rows = [
        {"user_id": user, "position": position, "discount": discount}
        for user, position, discount in (("u1", 0, 0.1), ("u2", 1, 0.25), ("ü3", 2, 0.5))
    ]
    url = f"{settings.server_url}/v1/score"
    answer = httpx.post(url, json={"candidates": rows}, headers=headers, trust_env=False)
    return [one["score"] for one in answer.raise_for_status().json()["scores"]]


def test_a_stock_client_gets_the_scores_of_the_short_form(seen, served):
    expected = short_scores(served)
    for way, name in (("http", "json"), ("http", "binary"), ("grpc", "raw")):
        answer = seen[way][name]
        assert (answer["scores"], answer["version"]) == (expected, "v000001")
        request = "rpc" if way == "grpc" else name
        assert answer["impressions"] == [f"{request}:{i}" for i in range(3)]


def test_a_stock_client_can_ask_for_a_version(seen, served):
    expected = short_scores(served, **{"x-headrace-version": "v000002"})
    assert expected != short_scores(served)
    for way in ("http", "grpc"):
        assert seen[way]["pinned"]["scores"] == expected
        assert seen[way]["pinned"]["version"] == "v000002"


def test_a_stock_client_reads_health_and_metadata(seen):
    for way in ("http", "grpc"):
        told = seen[way]
        assert told["live"] and told["ready"] and told["model_ready"]
        assert told["server"]["name"] == "headrace"
        assert told["server"]["extensions"] == ["binary_tensor_data"]
        assert (told["model"]["name"], told["model"]["versions"]) == ("coupons", ["v000001"])
        assert [tensor["name"] for tensor in told["model"]["inputs"]][:2] == ["user_id", "item_id"]
        assert "this server serves 'coupons'" in told["unknown"]
    assert seen["http"]["model_version_ready"]
    assert seen["grpc"]["unknown"].startswith("StatusCode.NOT_FOUND")
