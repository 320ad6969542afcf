"""MLflow shows what the line store holds; without it, or against it, the line goes on."""

from __future__ import annotations

import logging
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import gates, promote, tracking, upkeep
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError
from headrace.line import LineStore, Version
from headrace.settings import find_line, load_settings

SPEC = find_line(load_settings({}), "coupons")
EVIDENCE = {"candidate_logloss": 0.31, "auc": 0.72, "calibration": 1.02, "finite": True,
            "logloss_diff_low": None, "champion": "prior"}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that the first pass creates, as it would for a user."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> LineSpec:
    """A line of its own in the shared database."""
    return SPEC.model_copy(update={"line": f"line_{zlib.crc32(request.node.name.encode())}"})


@pytest.fixture
def store(tmp_path: Path, spec: LineSpec) -> LineStore:
    return LineStore(tmp_path / "lines" / spec.line, spec.line)


def publish(store: LineStore, step: int, passed: bool | None = True, by: Any = "cycle") -> Version:
    version = store.publish(
        {"w": np.full(3, step)}, parent=None, from_tick=step, to_tick=step + 1, excluded=[[1, 2]],
        watermark_us=1_000_000, event_at_us=0, feature_service="c_v1", code="test", rows=7,
        metrics={"loss": 0.5}, publisher=by,
    )  # fmt: skip
    if passed is not None:
        store.put_evidence(version.version, EVIDENCE)
        store.put_verdict(version.version, {"passed": passed, "reasons": [] if passed else ["why"]})
    return version


def promoted(store: LineStore, step: int, by: Any = "cycle") -> str:
    version = publish(store, step, by=by).version
    store.advance(store.champion(), version, "promote", "")
    return version


def aliases(url: str, line: str) -> dict[str, str]:
    """Our version behind each alias, as MLflow's own client says."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=url, registry_uri=url)
    found = client.get_registered_model(line).aliases
    return {
        name: client.get_model_version(line, str(number)).tags["headrace.version"]
        for name, number in found.items()
    }


def run_of(url: str, store: LineStore, version: str) -> Any:
    from mlflow import MlflowClient

    noted = tracking.tracked(store, version)
    assert noted is not None
    return MlflowClient(tracking_uri=url, registry_uri=url).get_run(noted["run_id"])


@pytest.mark.slow
def test_of_a_learners_versions_those_with_an_alias_are_mirrored(
    url: str, store: LineStore, spec: LineSpec
) -> None:
    base = promoted(store, 1)
    steps = [promoted(store, step, by="learner") for step in range(2, 6)]
    known: set[str] = set()
    assert tracking.mirror(store, spec, url, known).problem is None
    assert aliases(url, spec.line) == {"champion": steps[3], "previous": steps[2]}
    mirrored = [v for v in (base, *steps) if tracking.tracked(store, v)]
    assert mirrored == [base, *steps[2:]]
    store.rollback(to=steps[0])
    assert tracking.mirror(store, spec, url, known).waiting == 0
    assert aliases(url, spec.line)["champion"] == steps[0]


@pytest.mark.slow
def test_each_version_is_a_run_and_aliases_follow_promotion_and_rollback(
    url: str, store: LineStore, spec: LineSpec
) -> None:
    one = promoted(store, 1)
    assert tracking.mirror(store, spec, url).problem is None
    assert aliases(url, spec.line) == {"champion": one}
    two = promoted(store, 2)
    three = publish(store, 3, passed=None).version
    tracking.mirror(store, spec, url)
    assert aliases(url, spec.line) == {"champion": two, "previous": one, "challenger": three}
    store.rollback(reason="bad")
    store.put_verdict(three, {"passed": False, "reasons": ["calibration_within: 3"]})
    tracking.mirror(store, spec, url)
    assert aliases(url, spec.line) == {"champion": one}
    run = run_of(url, store, two)
    assert run.info.status == "FINISHED"
    assert run.data.params["line"] == spec.line
    assert (run.data.params["family"], run.data.params["from_tick"]) == ("ftrl_deep", "2")
    assert run.data.metrics["loss"] == 0.5
    assert run.data.metrics["gate.auc"] == 0.72
    assert run.data.metrics["staleness_s"] > 1e9
    assert "gate.logloss_diff_low" not in run.data.metrics
    refused = run_of(url, store, three)  # mirrored unjudged, and again with its verdict
    assert refused.data.tags["headrace.passed"] == "false"
    assert refused.data.tags["headrace.reasons"] == "calibration_within: 3"


@pytest.mark.slow
def test_mlflow_fetches_a_version_from_the_line_store_on_s3_and_stores_no_copy(
    url: str, spec: LineSpec, bucket: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    store = LineStore(f"{bucket}/lines/{spec.line}", spec.line)
    version = promoted(store, 1)
    assert tracking.mirror(store, spec, url).problem is None
    client = MlflowClient(tracking_uri=url, registry_uri=url)
    number = client.get_model_version_by_alias(spec.line, "champion").version
    source = client.get_model_version_download_uri(spec.line, number)
    assert source == f"{bucket}/lines/{spec.line}/versions/{version}"
    fetched = Path(download_artifacts(artifact_uri=source, dst_path=str(tmp_path)))
    names = {path.name for path in fetched.iterdir()}
    assert "manifest.json" in names
    for name in names:
        assert (fetched / name).read_bytes() == store.files.read(f"versions/{version}/{name}")
    assert client.list_artifacts(run_of(url, store, version).info.run_id) == []


@pytest.mark.slow
def test_a_mirror_that_was_interrupted_makes_nothing_twice(
    url: str, store: LineStore, spec: LineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    version = promoted(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(store.files, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # killed after the run, before the note
            tracking.mirror(store, spec, url)
    assert tracking.tracked(store, version) is None
    assert tracking.mirror(store, spec, url).problem is None
    client = MlflowClient(tracking_uri=url, registry_uri=url)
    experiment = client.get_experiment_by_name(spec.line)
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(client.search_model_versions(f"name = '{spec.line}'")) == 1


@pytest.mark.slow
def test_without_its_server_a_promotion_is_done_the_failure_told_and_caught_up_later(
    url: str,
    tmp_path: Path,
    spec: LineSpec,
    store: LineStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://ann:hunter2@127.0.0.1:{probe.getsockname()[1]}"
    settings = load_settings({"HEADRACE_HOME": str(tmp_path), "HEADRACE_MLFLOW_URI": nowhere})
    version = publish(store, 1, passed=None).version
    evidence = gates.Evidence(line=spec.line, candidate=version)
    store.put_evidence(version, evidence.to_dict())
    promote.promote(settings, spec, version)  # judged as if there were no MLflow at all
    store.advance(store.champion(), version, "force", "test")
    with caplog.at_level(logging.WARNING):
        done = upkeep.once(settings, spec)
        upkeep.once(settings, spec)
    assert done.unmirrored is not None
    assert "hunter2" not in f"{done} {caplog.text} {settings}"
    told = tracking.status(store)
    assert told is not None
    assert (told.failures, told.waiting) == (2, 1)
    assert told.problem is not None
    assert "MLflow not updated (2 in a row)" in caplog.text
    champion = store.champion()
    assert champion is not None
    assert champion.version == version
    caught_up = tracking.mirror(store, spec, url)
    assert (caught_up.problem, caught_up.waiting, caught_up.failures) == (None, 0, 0)
    assert aliases(url, spec.line) == {"champion": version}


def test_a_tracking_uri_that_is_none_is_refused_without_its_password() -> None:
    with pytest.raises(DeclarationError, match="HEADRACE_MLFLOW_URI") as refused:
        load_settings({"HEADRACE_MLFLOW_URI": "ftp://ann:hunter2@host"})
    assert "hunter2" not in str(refused.value)


def test_telemetry_is_off_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    tracking._client("http://127.0.0.1:9")
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get() is True
