"""The parts of other projects' resource definitions that infra/k8s uses, strictly.

Copied by hand from their CRDs: a key that is not here is refused, so a new one is looked up first.
KServe v0.15 (serving.kserve.io_inferenceservices.yaml), Prometheus operator v0.85
(monitoring.coreos.com_servicemonitors.yaml). Of Kubeflow Trainer and the Spark operator there are
models to be had: what they read and give back must be the same, as they drop unknown keys.
"""

from __future__ import annotations

from typing import Any

from kubeflow_spark_api.models.spark_v1beta2_spark_application import SparkV1beta2SparkApplication
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

MODELS = {
    "trainer.kubeflow.org/v1alpha1/TrainJob": TrainerV1alpha1TrainJob,
    "sparkoperator.k8s.io/v1beta2/SparkApplication": SparkV1beta2SparkApplication,
}
TEXT = {"type": "string"}
NUMBER = {"type": "integer"}
ANY: dict[str, Any] = {}
TEXTS = {"type": "array", "items": TEXT}


def of(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object of these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(**properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": of(**properties)}


QUANTITIES = {"type": "object", "additionalProperties": {"type": "string"}}
LABELS = QUANTITIES
META = of("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)
RESOURCES = of(requests=QUANTITIES, limits=QUANTITIES)
ENV_FROM = many(configMapRef=of("name", name=TEXT), secretRef=of("name", name=TEXT))
REFERENCE = of("name key", name=TEXT, key=TEXT)
ENV = many(name=TEXT, value=TEXT, valueFrom=of(secretKeyRef=REFERENCE, configMapKeyRef=REFERENCE))
MOUNTS = many(name=TEXT, mountPath=TEXT)
VOLUMES = many(
    name=TEXT, emptyDir=of(sizeLimit=TEXT), persistentVolumeClaim=of("claimName", claimName=TEXT)
)
SECURITY = of(
    runAsNonRoot={"type": "boolean"},
    runAsUser=NUMBER,
    allowPrivilegeEscalation={"type": "boolean"},
    capabilities=of(drop=TEXTS),
    seccompProfile=of("type", type=TEXT),
)
PROBE = of(httpGet=of("path port", path=TEXT, port=NUMBER), periodSeconds=NUMBER)
CONTAINERS = {
    "type": "array",
    "items": of(
        "name image",
        name=TEXT,
        image=TEXT,
        args=TEXTS,
        envFrom=ENV_FROM,
        env=ENV,
        ports=many(name=TEXT, containerPort=NUMBER, protocol=TEXT),
        readinessProbe=PROBE,
        resources=RESOURCES,
        securityContext=SECURITY,
        volumeMounts=MOUNTS,
    ),
}


def resource(spec: dict[str, Any]) -> dict[str, Any]:
    return of("apiVersion kind metadata spec", apiVersion=TEXT, kind=TEXT, metadata=META, spec=spec)


SCHEMAS = {
    "serving.kserve.io/v1beta1/InferenceService": resource(
        of(
            "predictor",
            predictor=of(
                "containers",
                minReplicas=NUMBER,
                maxReplicas=NUMBER,
                serviceAccountName=TEXT,
                volumes=VOLUMES,
                initContainers=CONTAINERS,
                containers=CONTAINERS,
            ),
        )
    ),
    "monitoring.coreos.com/v1/ServiceMonitor": resource(
        of(
            "endpoints selector",
            selector=of(
                matchLabels=LABELS, matchExpressions=many(key=TEXT, operator=TEXT, values=TEXTS)
            ),
            endpoints=many(
                port=TEXT,
                path=TEXT,
                interval=TEXT,
                authorization=of(type=TEXT, credentials=REFERENCE),
                relabelings=many(targetLabel=TEXT, replacement=TEXT),
            ),
        )
    ),
    "monitoring.coreos.com/v1/PrometheusRule": resource(
        of(
            "groups",
            groups=many(
                name=TEXT,
                rules=many(
                    **{"alert": TEXT, "record": TEXT, "expr": TEXT, "for": TEXT},
                    labels=LABELS,
                    annotations=LABELS,
                ),
            ),
        )
    ),
}
