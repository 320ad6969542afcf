"""What the OpenAPI document promises, tried with made-up requests: fitting ones and broken ones.

For each operation requests are drawn from the document's own schemas, some with one part changed
into nonsense. Whatever is sent: no answer is an error of the server, each status is one that the
document names, and each JSON answer fits the schema that it names for it. Derandomized, so that
a failure fails again.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from headrace.declaration import LineSpec
from headrace.serving.app import create_app
from headrace.settings import Settings, load_settings
from tests.contract.conftest import SHOP
from tests.serving import WATERMARK_US, advance, publish, until

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

DOCUMENT = create_app(
    load_settings({"HEADRACE_HOME": "/nowhere"}), LineSpec.model_validate(yaml.safe_load(SHOP))
).openapi()
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
TEXT = st.text(st.characters(), max_size=6)  # half surrogate pairs too
NONSENSE = st.sampled_from(
    [None, True, "", "x" * 5000, -1, 2**63, 10**400, 1e308, math.nan, -math.inf, [], {}, [[]]]
)
TENSORS = [
    {"name": "item", "datatype": "INT64", "shape": [2], "data": [7, None]},
    {"name": "user_id", "datatype": "BYTES", "shape": [2], "data": ["ann", "zo\u00eb"]},
    {"name": "price", "datatype": "FP64", "shape": [2], "data": [1.5, -0.0]},
]
KNOWN = {  # what a request must name rightly to get any further
    "inputs": [TENSORS[:1], TENSORS[1:], TENSORS],
    "name": ["user_id", "item", "price", "score", "impression_id"],
    "datatype": ["BYTES", "INT64", "FP64"],
    "shape": [[1], [2], [0], [-1], [1, 1]],
    "data": [[1], ["a"], [1.5, None], [1, 2]],
    "parameters": [{"binary_data_size": 8}, {"binary_data": True}, {"binary_data_output": True}],
}
PATHS = {"line": ["shop"], "version": ["v000001", "v000002", "v999999"]}


def values(schema: Any) -> SearchStrategy[Any]:
    """JSON values that fit a schema of the document, small ones."""
    if "$ref" in schema:
        return values(DOCUMENT["components"]["schemas"][schema["$ref"].split("/")[-1]])
    if "anyOf" in schema:
        return st.one_of([values(each) for each in schema["anyOf"]])
    match schema.get("type"):
        case "object":
            return members(schema)
        case "array":
            least = schema.get("minItems", 0)
            of = values(schema.get("items", {}))
            return st.lists(of, min_size=least, max_size=least + 3)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(st.characters(), min_size=schema.get("minLength", 0), max_size=6)
        case "integer":
            return st.integers(schema.get("minimum", -(2**70)), schema.get("maximum", 2**70))
        case "number":
            return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return NONSENSE


def members(schema: Any) -> SearchStrategy[Any]:
    fields = {}
    for name, each in schema.get("properties", {}).items():
        known = st.sampled_from(KNOWN[name]) if name in KNOWN else st.nothing()
        fields[name] = known | values(each)
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: each for name, each in fields.items() if name in required},
        optional={name: each for name, each in fields.items() if name not in required},
    )


@st.composite
def broken(draw: st.DrawFn, of: SearchStrategy[Any]) -> Any:
    """A value with one of its parts replaced, dropped, or made up."""
    value = at = deepcopy(draw(of))
    while isinstance(at, dict | list) and at:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or draw(st.booleans()):
            change = draw(st.sampled_from(["replace", "drop", "add"]))
            if change == "drop":
                del at[key]
            elif change == "add" and isinstance(at, dict):
                at[draw(TEXT)] = draw(NONSENSE)
            else:
                at[key] = draw(NONSENSE)
            return value
        at = at[key]
    return draw(NONSENSE)


@st.composite
def requests(draw: st.DrawFn, path: str, method: str) -> dict[str, Any]:
    """Keyword arguments of a request of an operation."""
    operation = DOCUMENT["paths"][path][method]
    headers: dict[str, bytes] = {}
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            drawn = draw(st.sampled_from(PATHS[name]) | TEXT.filter(bool))
            path = path.replace(f"{{{name}}}", quote(drawn.encode("utf-8", "replace"), safe=""))
        elif draw(st.booleans()):
            text = draw(st.sampled_from(PATHS["version"]) | st.text("v0123\x09é ", max_size=9))
            headers[name] = text.encode("latin-1")
    asked: dict[str, Any] = {"method": method.upper(), "url": path}
    content = operation.get("requestBody", {}).get("content")
    if content is not None:
        kind = draw(st.sampled_from(sorted(content)))
        schema = content["application/json"]["schema"]
        of = values(schema)
        body = json.dumps(draw(of | broken(of))).encode()
        if kind != "application/json":
            headers["inference-header-content-length"] = str(
                len(body) + draw(st.sampled_from([0, 0, 0, 1, -1]))
            ).encode()
            body += draw(st.sampled_from([b"", b"\x00" * 8, b"\x02\0\0\0ab", b"\xff" * 9]))
        asked["content"] = draw(st.just(body) | st.binary(max_size=12))
        headers["content-type"] = kind.encode()
    return asked | {"headers": headers}


@pytest.fixture(scope="module")
def client(
    applied: Settings, shop: LineSpec, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    home = tmp_path_factory.mktemp("fuzz")
    (home / "feast").symlink_to(applied.home / "feast")
    settings = replace(applied, home=home)
    for bias in (1.0, 2.0):
        publish(settings, shop, bias, WATERMARK_US)
    advance(settings, shop, "v000001")
    with TestClient(create_app(settings, shop), raise_server_exceptions=False) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        yield client


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_one_that_the_document_names(client, path, method):
    assert client.get("/openapi.json").json() == DOCUMENT
    responses = DOCUMENT["paths"][path][method]["responses"]
    seen: set[int] = set()

    @settings(
        max_examples=60 if method == "post" else 12,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(path, method))
    def holds(asked: dict[str, Any]) -> None:
        answer = client.request(**asked)
        seen.add(answer.status_code)
        assert answer.status_code < 500, (asked, answer.text)
        assert str(answer.status_code) in responses, (asked, answer.text)
        schema = responses[str(answer.status_code)]["content"]
        if answer.headers["content-type"] == "application/json":
            told = answer.json()
            whole = {"components": DOCUMENT["components"], **schema["application/json"]["schema"]}
            jsonschema.validate(told, whole)

    holds()
    assert 200 in seen, seen
    if method == "post":
        assert 422 in seen, seen
