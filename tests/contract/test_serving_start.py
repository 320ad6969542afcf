"""While a model is loaded, which may take a minute, the server answers everything else."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.declaration import LineSpec
from headrace.line import states
from headrace.model.tables import Tables
from headrace.serving.app import create_app
from headrace.settings import Settings
from tests.serving import WATERMARK_US, advance, publish, until

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

TELLS = ("/v2", "/v2/health/live", "/v2/models/shop", "/v1/status", "/v1/race", "/metrics")


class Halt:
    """A step of loading that stands still in its first call until it is let go."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._step = step
        self.reached, self.go_on = threading.Event(), threading.Event()

    def method(self) -> Callable[..., Any]:
        def halted(*given: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(60)
            return self._step(*given)

        return halted


def test_no_answer_waits_for_the_store_the_first_model_or_the_second(
    applied: Settings, shop: LineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feast").symlink_to(applied.home / "feast")
    settings = replace(applied, home=tmp_path)
    version = publish(settings, shop, 1.0, WATERMARK_US)
    advance(settings, shop, version)
    read, first, second = Halt(states.read), Halt(Tables.load), Halt(Tables.load_beside)
    monkeypatch.setattr(states, "read", read.method())
    monkeypatch.setattr(Tables, "load", first.method())
    monkeypatch.setattr(Tables, "load_beside", second.method())
    with TestClient(create_app(settings, shop)) as client, ThreadPoolExecutor(1) as beside:

        def answer(path: str, **body: Any) -> Any:
            ask = client.post if body else client.get
            return beside.submit(ask, path, **body).result(30)  # an end, were it to wait

        def score() -> int:
            told: int = answer("/v1/score", json={"candidates": [{}]}).status_code
            return told

        try:
            for halt, versions, status in (
                (read, [], 503),
                (first, [], 503),
                (second, [version], 200),
            ):
                assert halt.reached.wait(60)
                assert [answer(path).status_code for path in TELLS] == [200] * len(TELLS)
                told = answer("/v2/models/shop").json()
                assert (told["versions"], told["delivery"]["waiting"]) == (versions, None)
                assert answer("/v2/health/ready").status_code == score() == status
                halt.go_on.set()
        finally:
            for halt in (read, first, second):
                halt.go_on.set()
        until(lambda: answer("/v2/models/shop").json()["delivery"]["waiting"] == version)
        assert score() == 200
