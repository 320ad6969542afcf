"""What a pipeline's pods are given on Kubernetes: compiled in when declared, nothing otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.errors import DeclarationError
from headrace.launch import run_pipeline
from headrace.launch.package import COMPILED, package_of
from headrace.settings import PROJECT, Settings, find_line, load_settings
from tests.kfp_server import TOKEN, Cluster, serving

PARTS = {"HEADRACE_KFP_SECRET": "headrace/REDIS_PASSWORD,TOKEN", "HEADRACE_KFP_VOLUME": "line-0"}
NODES = "{node_selector: {pool: ml}, training_node_selector: {nvidia.com/gpu.product: L4}}"


@pytest.fixture
def remote() -> Iterator[Cluster]:
    with serving() as made:
        yield made


def declared(folder: Path, resources: str, **environ: str) -> Settings:
    """Settings whose line `coupons` declares these resources."""
    text = (PROJECT / "lines" / "coupons.yaml").read_text(encoding="utf-8")
    (folder / "lines").mkdir()
    (folder / "lines" / "coupons.yaml").write_text(f"{text}\nresources: {resources}\n")
    places = {"HEADRACE_HOME": str(folder / "home"), "HEADRACE_LINES_DIR": str(folder / "lines")}
    return load_settings(places | environ)


def pods(settings: Settings, pipeline: str) -> dict[str, dict[str, Any]]:
    """The platform spec of each container of the package that would be submitted."""
    package = package_of(settings, find_line(settings, "coupons"), pipeline)
    _, platform = yaml.safe_load_all(package.read_text(encoding="utf-8"))
    return dict(platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])


def test_every_container_gets_secrets_by_name_and_the_volume(tmp_path):
    found = pods(declared(tmp_path, "{}", **PARTS), "incremental_train")
    assert set(found) == {"exec-check-data", "exec-train", "exec-evaluate", "exec-promote"}
    for pod in found.values():
        (secret,), (volume,) = pod["secretAsEnv"], pod["pvcMount"]
        assert secret["secretName"] == "headrace"
        assert [(one["secretKey"], one["envVar"]) for one in secret["keyToEnv"]] == [
            ("REDIS_PASSWORD", "REDIS_PASSWORD"),
            ("TOKEN", "TOKEN"),
        ]
        assert (volume["constant"], volume["mountPath"]) == ("line-0", "/var/lib/headrace")
        assert "nodeSelector" not in pod


@pytest.mark.parametrize(
    ("pipeline", "training"),
    [("full_train", "exec-train"), ("tune", "exec-try-model"), ("batch_score", None)],
)
def test_only_containers_that_train_are_bound_to_the_nodes_for_training(
    tmp_path, pipeline, training
):
    found = pods(declared(tmp_path, NODES), pipeline)
    labels = {name: pod["nodeSelector"]["labels"] for name, pod in found.items()}
    both = {"pool": "ml", "nvidia.com/gpu.product": "L4"}
    assert labels.pop(training, both) == both
    assert labels
    assert all(bound == {"pool": "ml"} for bound in labels.values())
    assert not any("secretAsEnv" in pod or "pvcMount" in pod for pod in found.values())


def test_nodes_for_training_alone_leave_the_other_containers_alone(tmp_path):
    found = pods(declared(tmp_path, "{training_node_selector: {gpu: l4}}"), "full_train")
    assert {name: pod["nodeSelector"]["labels"] for name, pod in found.items()} == {
        "exec-train": {"gpu": "l4"}
    }


def test_where_nothing_is_declared_the_compiled_file_itself_is_submitted(tmp_path):
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    package = package_of(settings, find_line(settings, "coupons"), "full_train")
    assert package == COMPILED / "full_train.yaml"
    assert list(tmp_path.iterdir()) == []


def test_the_cluster_is_sent_what_is_declared(remote, tmp_path):
    settings = declared(tmp_path, NODES, **PARTS)
    settings = replace(settings, kfp_endpoint=remote.url, kfp_token=TOKEN)
    assert run_pipeline(settings, "incremental_train", "coupons", poll_s=0.02).outcome
    assert remote.run is not None
    sent = remote.run.pipeline_spec["platform_spec"]["platforms"]["kubernetes"]
    assert sent["deploymentSpec"]["executors"] == pods(settings, "incremental_train")


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ("{node_selector: {'a b': x}}", r"resources.node_selector: 'a b' is no label of a node"),
        ("{node_selector: {pool: 'a b'}}", r"node_selector: pool: 'a b' is no label's value"),
        ("{training_node_selector: {gpu: true}}", r"training_node_selector.gpu: .*valid string"),
        ("{node_selector: [pool]}", r"resources.node_selector: .*valid dict"),
        ("{tolerations: []}", r"resources.tolerations: unknown key"),
    ],
)
def test_a_wrong_declaration_is_told_with_its_key(tmp_path, resources, told):
    with pytest.raises(DeclarationError, match=told):
        find_line(declared(tmp_path, resources), "coupons")


@pytest.mark.parametrize(
    "text",
    ["headrace", "headrace/", "headrace/TOKEN=hunter2", "headrace/hunter2", "a/TOKEN,", "A/TOKEN"],
)
def test_a_secret_is_named_and_never_given(text):
    with pytest.raises(DeclarationError, match="HEADRACE_KFP_SECRET names no keys") as refused:
        load_settings({"HEADRACE_KFP_SECRET": text})
    assert "hunter2" not in str(refused.value)


def test_a_claim_has_a_name_of_kubernetes():
    with pytest.raises(DeclarationError, match="HEADRACE_KFP_VOLUME='/data' is no name"):
        load_settings({"HEADRACE_KFP_VOLUME": "/data"})
