"""`infra/services.sh` refuses what it cannot do before it starts or removes anything."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from headrace.settings import PROFILES, PROJECT

SCRIPT = PROJECT / "infra" / "services.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_without_a_command_it_says_how_it_is_used() -> None:
    done = run("somewhere")
    assert (done.returncode, "usage: infra/services.sh" in done.stderr) == (4, True)


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = run(str(tmp_path), "true")
    assert done.returncode == 4
    assert "is not a folder of this script" in done.stderr
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 9193))
        except OSError:
            pytest.skip("the services profile runs on this machine")
        taken.listen()
        done = run(str(tmp_path / "services"), "true")
    assert done.returncode == 4
    assert re.search(r"port \d+ on 127\.0\.0\.1 is taken", done.stderr)


def test_its_ports_are_those_of_the_profile() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    ports = dict(re.findall(r"(\w+)_port=(\d+)", script))
    profile = (PROFILES / "services.yaml").read_text(encoding="utf-8")
    assert f"kafka://127.0.0.1:{ports['kafka']}/" in profile
    assert f"@127.0.0.1:{ports['redis']}/" in profile
    databases = set(re.findall(rf"@127\.0\.0\.1:{ports['postgres']}/(\w+)", profile))
    assert databases == {"feast", "mlflow", "airflow"}
    assert "for name in feast mlflow airflow" in script
