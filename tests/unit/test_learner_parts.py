"""Parts of the learner that need no model: rows after a pause, and what it tells."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from headrace.errors import EnvironmentFault
from headrace.learner.intake import known_after_pauses
from headrace.learner.metrics import LearnerMetrics, MetricsServer
from headrace.records import Cycle
from headrace.settings import PROJECT, find_line, load_settings
from headrace.stack import services
from tests.campaign import free_port, value_of

S = 1_000_000


def test_after_a_pause_labels_are_known_once_silence_was_waited_for() -> None:
    emitted = np.array([1, 2, 3, 40, 45, 54, 55, 56]) * S
    known = known_after_pauses(emitted, 0, 10 * S)
    assert known.tolist() == [True, True, True, False, False, False, True, True]


def test_a_window_that_begins_with_a_pause_knows_it() -> None:
    emitted = np.array([40, 49, 55, 70]) * S
    assert known_after_pauses(emitted, 39 * S, 10 * S).tolist() == [True, True, True, False]
    assert known_after_pauses(emitted, 20 * S, 10 * S).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("declared", "there"), [("", False), ("\n  learn: 2s", True)])
def test_a_line_that_declares_it_has_a_learner_in_its_stack(
    tmp_path: Path, declared: str, there: bool
) -> None:
    text = (PROJECT / "lines" / "coupons.yaml").read_text(encoding="utf-8")
    assert "\n  full: 1d" in text
    changed = text.replace("\n  full: 1d", f"\n  full: 1d{declared}")
    (tmp_path / "coupons.yaml").write_text(changed, encoding="utf-8")
    settings = load_settings({"HEADRACE_LINES_DIR": str(tmp_path)})
    found = {service.name: service for service in services(settings, "coupons")}
    assert ("learn" in found) == there
    if there:
        assert found["learn"].command[1:] == ("learn", "--line", "coupons")
        assert find_line(settings, "coupons").cadence.learn == 2 * S


def test_steps_and_health_are_told_over_http() -> None:
    metrics = LearnerMetrics(find_line(load_settings({}), "coupons"))
    port = free_port()
    server = MetricsServer(metrics, "127.0.0.1", port)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/health").json()["status"] == "waiting"
            step = Cycle("run-1", "learner", 1, outcome="promoted", stage="promote")
            metrics.looked([step, step], 0.2, 3)
            metrics.stands("v000009", 5 * S)
            page = client.get("/metrics").text
            told = {"outcome": "promoted", "stage": "promote"}
            assert value_of(page, "headrace_learner_steps_total", **told) == 2
            assert value_of(page, "headrace_learner_ticks_behind") == 3
            assert value_of(page, "headrace_learner_watermark_timestamp_seconds") == 5
            assert value_of(page, "headrace_learner_step_seconds_count") == 1
            assert client.get("/health").json()["champion"] == "v000009"
            metrics.failed("the disk is gone")
            answer = client.get("/health")
            assert (answer.status_code, answer.json()["problem"]) == (503, "the disk is gone")
            assert client.get("/elsewhere").status_code == 404
            with pytest.raises(EnvironmentFault, match="HEADRACE_LEARNER_PORT"):
                MetricsServer(metrics, "127.0.0.1", port)
    finally:
        server.close()
