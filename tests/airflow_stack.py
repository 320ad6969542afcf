"""A stack of Airflow alone for the tests of its DAGs: nothing scores or collects in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from headrace.settings import PROJECT, Settings, load_settings
from headrace.stack import Service, services
from tests.campaign import free_port


def airflow_alone(settings: Settings, line: str) -> tuple[Service, ...]:
    return tuple(one for one in services(settings, line) if one.name.startswith("airflow"))


def made(root: Path, **environ: str) -> Settings:
    """Settings of a home of its own, whose line asks before a rollback and watches its samples."""
    declared = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text())
    declared["rollback"] = {"approval": True, "wait": "10m"}
    declared["cadence"] |= {"incremental": "1h", "on_samples": 100}
    (root / "lines").mkdir()
    (root / "lines" / "coupons.yaml").write_text(yaml.safe_dump(declared))
    ports = ("AIRFLOW", "SERVER", "GRPC", "COLLECTOR")
    return load_settings(
        {"HEADRACE_HOME": str(root / "home"), "HEADRACE_LINES_DIR": str(root / "lines")}
        | {f"HEADRACE_{name}_PORT": str(free_port()) for name in ports}
        | environ
    )


def until(found: Callable[[], Any], timeout_s: float = 240.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
    return answer
