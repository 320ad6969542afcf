"""Manifests of infra/: rendered, validated strictly, and held against what they speak of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import components
from headrace.launch.platform import HOME_THERE
from headrace.settings import PROJECT, load_settings
from tests.crds import MODELS, SCHEMAS

INFRA = PROJECT / "infra"
OVERLAYS = ("dev", "gpu", "prod")
VERSION = "1.32"
TOKENS = ("KFP", "SCORE", "ADMIN", "COLLECT")
SECRET_KEYS = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY")


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl; run `bash infra/setup/kubectl.sh` as root")
    folder = INFRA / "k8s" / "overlays" / overlay
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    return list(yaml.safe_load_all(done.stdout))


def found(overlay: str, kind: str, name: str) -> dict[str, Any]:
    (one,) = (o for o in rendered(overlay) if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return one


def pod_specs(overlay: str) -> list[dict[str, Any]]:
    owners = [o for o in rendered(overlay) if o["kind"] in ("Deployment", "Job", "StatefulSet")]
    specs = [owner["spec"]["template"]["spec"] for owner in owners]
    specs += [o["spec"]["predictor"] for o in rendered(overlay) if o["kind"] == "InferenceService"]
    assert len(specs) == 4
    return specs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_its_schema_and_none_goes_unchecked(overlay: str):
    checked = []
    for one in rendered(overlay):
        api = f"{one['apiVersion']}/{one['kind']}"
        if api in SCHEMAS:
            jsonschema.validate(one, SCHEMAS[api])
        elif api in MODELS:
            assert MODELS[api].from_dict(one).to_dict() == one  # type: ignore[attr-defined]
        else:  # raises for what it has no schema of
            kubernetes_validate.validate(one, VERSION, strict=True)
        checked.append(one["kind"])
    assert {"StatefulSet", "Deployment", "InferenceService", "TrainJob"} <= set(checked)
    assert len(checked) >= 17


def test_a_misspelt_key_of_either_kind_is_refused():
    server = yaml.safe_load(yaml.safe_dump(found("prod", "Deployment", "server")))
    server["spec"]["replcas"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(server, VERSION, strict=True)
    model = yaml.safe_load(yaml.safe_dump(found("prod", "InferenceService", "coupons")))
    model["spec"]["predictor"]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(model, SCHEMAS["serving.kserve.io/v1beta1/InferenceService"])
    job = yaml.safe_load(yaml.safe_dump(found("prod", "TrainJob", "full-train")))
    job["spec"]["trainer"]["numNode"] = 2
    assert MODELS["trainer.kubeflow.org/v1alpha1/TrainJob"].from_dict(job).to_dict() != job


def test_the_inference_service_fits_the_models_of_kserves_sdk():
    python = PROJECT / "out" / "kserve" / "bin" / "python"
    if not python.exists():
        pytest.skip("no KServe; run `bash infra/setup/kserve.sh`")

    def unfit(one: dict[str, Any]) -> str:
        command = [str(python), str(PROJECT / "tests" / "kserve_keys.py")]
        told = subprocess.run(
            command, input=json.dumps(one), capture_output=True, text=True, check=True
        )
        return told.stdout

    service = found("prod", "InferenceService", "coupons")
    assert unfit(service) == ""
    wrong = yaml.safe_load(yaml.safe_dump(service))
    wrong["spec"]["predictor"]["containers"][0]["imag"] = "x"
    assert "containers[0]" in unfit(wrong)


def test_pods_that_operators_make_are_what_the_namespace_admits_too():
    label = "pod-security.kubernetes.io/enforce"
    (namespace,) = (o for o in rendered("prod") if o["kind"] == "Namespace")
    assert namespace["metadata"]["labels"][label] == "restricted"
    (patch,) = found("prod", "TrainJob", "full-train")["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    asked = [(pod["securityContext"], pod["containers"][0]["securityContext"])]
    spark = found("prod", "SparkApplication", "backfill")["spec"]
    for role in ("driver", "executor"):
        asked.append((spark[role]["podSecurityContext"], spark[role]["securityContext"]))
    airflow = yaml.safe_load((INFRA / "airflow" / "values.yaml").read_text(encoding="utf-8"))
    asked.append(tuple(airflow["securityContexts"][each] for each in ("pod", "containers")))
    for of_pod, of_container in asked:
        assert (of_pod["runAsNonRoot"], of_pod["runAsUser"]) == (True, 10001)
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert of_container["allowPrivilegeEscalation"] is False
        assert of_container["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_run_bounded_without_root_and_with_secrets_by_reference(overlay: str):
    for spec in pod_specs(overlay):
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            where = spec.get("securityContext", security)
            assert (where["runAsNonRoot"], where["runAsUser"]) == (True, 10001)
            assert where["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"secretRef": {"name": "headrace"}} in container["envFrom"]
            assert re.fullmatch(r"ghcr\.io/headrace/headrace-\w+:\d+\.\d+\.\d+", container["image"])
            if container in spec["containers"]:
                assert container["resources"]["limits"]["memory"]
    for one in rendered(overlay):
        assert one["kind"] != "Secret"
        for key in one.get("data", {}) if one["kind"] == "ConfigMap" else ():
            assert not SECRET_KEYS.search(key)


def test_commands_probes_and_ports_are_those_of_the_program():
    from typer.main import get_command

    from headrace.cli import app
    from headrace.serving.app import create_app
    from headrace.settings import find_line

    settings = load_settings({"HEADRACE_HOME": "/nowhere"})
    spec = find_line(settings, "coupons")
    paths = set(create_app(settings, spec).openapi()["paths"])
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for pod in pod_specs("prod"):
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["args"][0] in verbs
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["path"] in paths | {"/health"}
    ports = {p["name"]: p["port"] for p in found("prod", "Service", "line")["spec"]["ports"]}
    wanted = (settings.server_port, settings.grpc_port, settings.collector_port)
    assert (ports["http"], ports["grpc"], ports["collect"]) == wanted
    job = found("prod", "Job", "upload")["spec"]["template"]["spec"]["containers"][0]
    assert job["image"] == components.IMAGE
    assert job["args"][1] in verbs[job["args"][0]].commands
    backfill = found("prod", "SparkApplication", "backfill")["spec"]
    assert backfill["arguments"][0] in verbs


def test_overlays_change_what_they_say():
    assert found("dev", "HorizontalPodAutoscaler", "server")["spec"]["maxReplicas"] == 1
    assert [o for o in rendered("dev") if o["kind"] == "PodDisruptionBudget"] == []
    assert found("prod", "PodDisruptionBudget", "server")["spec"]["minAvailable"] == 2
    per_node = found("gpu", "TrainJob", "full-train")["spec"]["trainer"]["resourcesPerNode"]
    assert per_node["limits"]["nvidia.com/gpu"] == "1"
    quota = found("gpu", "ResourceQuota", "headrace")["spec"]["hard"]
    assert quota["requests.nvidia.com/gpu"] == "4"


def test_the_cluster_profile_asks_for_no_secret_that_the_settings_file_does_not_name():
    profile = (PROJECT / "profiles" / "cluster.yaml").read_text(encoding="utf-8")
    settings = (INFRA / "k8s" / "base" / "settings.yaml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+)\}", profile))
    assert asked
    assert [name for name in asked if name not in settings] == []


def test_a_pipelines_containers_get_what_the_cluster_profile_asks_for():
    profile = (PROJECT / "profiles" / "cluster.yaml").read_text(encoding="utf-8")
    asked = dict.fromkeys(re.findall(r"\$\{(\w+)\}", profile), "0123456789abcdef")
    settings = load_settings({"HEADRACE_PROFILE": "cluster"} | asked)
    assert settings.kfp_secret is not None
    line = yaml.safe_load_all((INFRA / "k8s" / "base" / "line.yaml").read_text(encoding="utf-8"))
    pod, (claim,) = (spec := next(line)["spec"])["template"]["spec"], spec["volumeClaimTemplates"]
    secrets = [one["secretRef"]["name"] for one in pod["containers"][0]["envFrom"][1:]]
    assert secrets == [settings.kfp_secret.name]
    assert set(asked) <= set(settings.kfp_secret.keys)
    assert settings.kfp_volume == f"{claim['metadata']['name']}-line-0"
    for text in ("images/Dockerfile", "k8s/base/settings.yaml"):
        assert re.search(rf"HEADRACE_HOME[=:] ?{HOME_THERE}\b", (INFRA / text).read_text())


def test_the_collector_finds_the_brokers_authority_where_the_profile_says():
    asked = dict.fromkeys(("KAFKA_SASL", "REDIS", "POSTGRES"), "0123456789abcdef")
    environ = {f"HEADRACE_{name}_PASSWORD": value for name, value in asked.items()}
    environ |= {f"HEADRACE_{name}_TOKEN": "0123456789abcdef" for name in TOKENS}
    ca = load_settings({"HEADRACE_PROFILE": "cluster"} | environ).kafka_security.ca
    assert ca is not None
    pod = found("prod", "StatefulSet", "line")["spec"]["template"]["spec"]
    (ingest,) = (one for one in pod["containers"] if one["args"][0] == "ingest")
    (mount,) = (one for one in ingest["volumeMounts"] if one["mountPath"] == str(ca.parent))
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    assert mount["readOnly"] is True
    assert volume["secret"] == {"secretName": "headrace-kafka-ca"}


def test_a_training_on_a_cluster_is_given_every_secret_that_the_profile_asks_for():
    profile = (PROJECT / "profiles" / "cluster.yaml").read_text(encoding="utf-8")
    trainer = found("prod", "TrainJob", "full-train")["spec"]["trainer"]
    given = {one["name"]: one for one in trainer["env"]}
    for name in re.findall(r"\$\{(\w+)\}", profile):
        assert given[name]["valueFrom"]["secretKeyRef"] == {"name": "headrace", "key": name}


def test_compose_has_no_password_no_latest_and_nothing_open_beyond_loopback():
    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    body = yaml.safe_load(text)
    for name, service in body["services"].items():
        assert re.search(r":\d+\.\d+[\w.-]*$", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for key, value in service.get("environment", {}).items():
            if SECRET_KEYS.search(key) and key != "AWS_ACCESS_KEY_ID":
                assert re.fullmatch(r"\$\{\w+:\?\}", value), f"{name}: {key}"


def test_the_image_is_pinned_unprivileged_and_has_what_components_name():
    text = (INFRA / "images" / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE)
    assert {name for _, name in stages} == {"uv", "built", "server", "worker", "airflow"}
    assert "latest" not in text
    assert text.count("uv sync --locked --no-dev") == 2
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[3:]:
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1].startswith("10001:")
    sent = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split()
    for copied in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        assert [name for name in copied.split() if not (PROJECT / name).exists()] == []
        assert [name for name in copied.split() if f"!{name}" not in sent] == []
    assert {"dags", "plugins"} <= set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE))
    for folder in ("DAGS_FOLDER=/app/dags", "PLUGINS_FOLDER=/app/plugins"):
        assert f"AIRFLOW__CORE__{folder}" in stage
    (version,) = re.findall(r'^version = "(.+)"$', (PROJECT / "pyproject.toml").read_text(), re.M)
    assert components.IMAGE.endswith(f":{version}")


def test_the_bill_of_materials_names_every_locked_package_with_its_hash(tmp_path: Path):
    if shutil.which("uv") is None and not (PROJECT / "out" / "uv" / "bin" / "uv").exists():
        pytest.skip("no uv; run `bash infra/setup/install.sh`")
    file = tmp_path / "sbom.json"
    command = ["bash", str(INFRA / "setup" / "sbom.sh"), str(file)]
    subprocess.run(command, check=True, capture_output=True)
    bill = json.loads(file.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    listed = {(one["name"], one["version"]) for one in bill["components"]}
    lock = tomllib.loads((PROJECT / "uv.lock").read_text(encoding="utf-8"))["package"]
    assert listed <= {(one["name"], one["version"]) for one in lock}
    named = {name for name, _ in listed}
    assert {"tensorflow", "feast", "apache-airflow", "pyarrow"} <= named
    assert not {"pytest", "ruff", "lightgbm"} & named
    for one in bill["components"]:
        hashes = [h for each in one.get("externalReferences", ()) for h in each.get("hashes", ())]
        assert any(h["alg"] == "SHA-256" for h in hashes), one["name"]


def test_airflows_values_hold_no_secret():
    body = yaml.safe_load((INFRA / "airflow" / "values.yaml").read_text(encoding="utf-8"))
    assert body["images"]["airflow"]["repository"].endswith("/headrace-airflow")
    named = [body["data"]["metadataSecretName"], body["fernetKeySecretName"]]
    named += [body["jwtSecretName"], body["apiSecretKeySecretName"]]
    assert all(name.startswith("headrace-airflow-") for name in named)
    assert "connection" not in body["data"]
