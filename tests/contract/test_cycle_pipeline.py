"""The cycle as a pipeline that runs here: each component in a process of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from headrace import launch, train
from tests.contract.written_line import Line


@pytest.mark.e2e
def test_the_pipeline_runs_here_and_reports_what_its_components_recorded(line: Line) -> None:
    line.tick(3)
    done = threading.Event()

    def traffic() -> None:
        while not done.wait(0.5):
            line.tick(1)

    sender = threading.Thread(target=traffic)
    sender.start()
    try:
        result = launch.run_pipeline(line.settings, "incremental_train", "tiny")
    finally:
        done.set()
        sender.join()
    assert (result.outcome, result.stage, result.reasons) == ("promoted", "promote", ())
    assert line.champion == result.version == "v000002"
    assert result.log is not None
    assert "outcome='promoted'" in Path(result.log).read_text()
    (shown,) = (line.settings.home / "kfp").rglob("evaluate/calibration")
    assert f"<h1>tiny {result.version}</h1>" in shown.read_text()
    metadata = (shown.parent / "executor_output.json").read_text()
    assert '"confidenceMetrics"' in metadata
    assert '"log_loss"' in metadata


@pytest.mark.e2e
def test_a_window_that_the_pipeline_refuses_trains_nothing(line: Line) -> None:
    line.tick(30, click=np.ones_like)
    result = launch.run_pipeline(line.settings, "incremental_train", "tiny")
    assert (result.outcome, result.stage, result.version) == ("rejected", "data", None)
    assert [v.version for v in line.store.versions()] == ["v000001"]
    assert result.log is not None
    assert "train" not in {p.name for p in (line.settings.home / "kfp").glob("*/*/*")}


@pytest.mark.e2e
def test_a_component_that_fails_is_a_failed_run_with_its_reason(line: Line) -> None:
    (line.home / "samples" / "b=00000036.parquet").write_bytes(b"torn")
    result = launch.run_pipeline(line.settings, "incremental_train", "tiny")
    assert (result.outcome, result.stage) == ("failed", "data")
    assert result.reasons[0].startswith("ArrowInvalid: ")


@pytest.mark.e2e
def test_a_full_training_runs_as_a_pipeline(line: Line) -> None:
    promoted = train.incremental(line.settings, line.spec, 34, 40)
    line.store.advance(line.store.champion(), promoted, "promote", "test")
    line.tick(2)
    sender = threading.Timer(6.0, line.tick, (1,))
    sender.start()
    result = launch.run_pipeline(line.settings, "full_train", "tiny")
    sender.join()
    assert result.outcome == "promoted", result
