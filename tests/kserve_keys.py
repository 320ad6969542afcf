"""Run by KServe's own interpreter (out/kserve): does an InferenceService fit the SDK's models?

The SDK takes any key silently, so each is looked up in the models' own lists. Reads the object as
JSON from stdin, prints what does not fit, a line each.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve.models
from kubernetes.client import models


def unknown(value: Any, kind: str, where: str) -> Iterator[str]:
    """Paths of keys that the model of this kind has not, and of values that are not of a kind."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        for place, each in enumerate(value):
            yield from unknown(each, inner[1], f"{where}[{place}]")
        return
    model = getattr(kserve.models, kind, None) or getattr(models, kind, None)
    if model is None:  # str, int, dict(str, str), object
        return
    if hasattr(model, "from_dict"):  # Kubernetes' own
        found = model.from_dict(value).model_dump(mode="json", by_alias=True, exclude_none=True)
        if found != value:
            yield f"{where}: not what {kind} gives back"
        return
    kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, each in value.items():
        if key in kinds:
            yield from unknown(each, kinds[key], f"{where}.{key}")
        else:
            yield f"{where}.{key}: no key of {kind}"


if __name__ == "__main__":
    for problem in unknown(json.load(sys.stdin), "V1beta1InferenceService", ""):
        print(problem)  # noqa: T201
