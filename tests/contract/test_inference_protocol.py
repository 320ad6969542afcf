"""Open Inference Protocol v2: binary tensors over REST, gRPC, versions asked for by name."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.serving.app import create_app, run
from headrace.serving.oip import grpc_service_pb2 as pb
from headrace.serving.oip.rpc import SERVICE
from headrace.settings import Settings
from tests.serving import WATERMARK_US, advance, publish, served_rows, until

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

LENGTH = "Inference-Header-Content-Length"
ITEMS = np.array([7, 2**62 + 1], "<i8").tobytes()
USERS = b"".join(struct.pack("<I", len(user)) + user for user in (b"ann", "zoë".encode()))
PRICES = np.array([2.5, np.nan], "<f8").tobytes()
ROWS = [{"user_id": "ann", "item": 7, "price": 2.5}, {"user_id": "zoë", "item": 2**62 + 1}]


@pytest.fixture(scope="module")
def settings(applied: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("protocol")
    (home / "feast").symlink_to(applied.home / "feast")
    return replace(applied, home=home)


@pytest.fixture(scope="module")
def server(settings: Settings, shop: LineSpec) -> Iterator[TestClient]:
    for i, bias in enumerate((1.0, 3.0, 5.0)):
        publish(settings, shop, bias, WATERMARK_US + i)
    advance(settings, shop, "v000001")
    with TestClient(create_app(settings, shop, grpc_port=0)) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def channel(server: TestClient) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as opened:
        yield opened


def call(channel: grpc.Channel, method: str, asked: Any = None, **options: Any) -> Any:
    """One unary call of the service."""
    asked = getattr(pb, f"{method}Request")() if asked is None else asked
    answer = getattr(pb, f"{method}Response").FromString
    return channel.unary_unary(f"/{SERVICE}/{method}", type(asked).SerializeToString, answer)(
        asked, timeout=30, **options
    )


def raw_inputs() -> list[tuple[str, str, bytes]]:
    return [("user_id", "BYTES", USERS), ("item", "INT64", ITEMS), ("price", "FP64", PRICES)]


def binary_body(**more: Any) -> tuple[bytes, dict[str, str]]:
    tensors = [
        {"name": name, "datatype": kind, "shape": [2], "parameters": {"binary_data_size": len(raw)}}
        for name, kind, raw in raw_inputs()
    ]
    head = json.dumps({"inputs": tensors} | more).encode()
    return head + b"".join(raw for *_, raw in raw_inputs()), {LENGTH: str(len(head))}


def rpc_request(**more: Any) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name="shop", **more)
    for name, kind, _ in raw_inputs():
        asked.inputs.add(name=name, datatype=kind, shape=[2])
    asked.raw_input_contents.extend(raw for *_, raw in raw_inputs())
    return asked


def short_scores(server: TestClient, **headers: str) -> list[float]:
    answer = server.post("/v1/score", json={"candidates": ROWS}, headers=headers)
    assert answer.status_code == 200, answer.text
    return [one["score"] for one in answer.json()["scores"]]


def test_binary_tensors_give_the_scores_of_json(server, settings, shop):
    body, headers = binary_body(id="bin", parameters={"binary_data_output": True})
    answer = server.post("/v2/models/shop/infer", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    head, rest = json.loads(answer.content[:length]), answer.content[length:]
    sizes = [one["parameters"]["binary_data_size"] for one in head["outputs"]]
    assert [one["name"] for one in head["outputs"]] == ["score", "impression_id"]
    assert len(rest) == sum(sizes)
    assert np.frombuffer(rest[: sizes[0]], "<f8").tolist() == short_scores(server)
    assert rest[sizes[0] :] == b"\x05\0\0\0bin:0\x05\0\0\0bin:1"
    until(lambda: len(served_rows(settings, shop, "bin")) == 2)
    logged = served_rows(settings, shop, "bin")
    told = [(row["user_id"], row["item"], row["price"]) for row in logged]
    assert told == [("ann", 7, 2.5), ("zoë", 2**62 + 1, None)]
    assert [(row["arm"], row["propensity"]) for row in logged] == [("champion", 1.0)] * 2


def test_a_whole_number_that_no_float_holds_is_the_nearest_one(server, settings, shop):
    most = 2**53 + 1
    tensors = [{"name": "price", "datatype": "FP64", "shape": [1], "data": [most]}]
    answers = [
        server.post("/v2/models/shop/infer", json={"id": "whole", "inputs": tensors}),
        server.post("/v1/score", json={"request_id": "alike", "candidates": [{"price": most}]}),
    ]
    assert [each.status_code for each in answers] == [200, 200]
    for name in ("whole", "alike"):
        until(lambda name=name: len(served_rows(settings, shop, name)) == 1)
        assert served_rows(settings, shop, name)[0]["price"] == 2.0**53


def test_only_the_outputs_asked_for_come_back_each_as_asked(server):
    wanted = [{"name": "impression_id"}, {"name": "score", "parameters": {"binary_data": True}}]
    body, headers = binary_body(id="o", outputs=wanted)
    answer = server.post("/v2/models/shop/infer", content=body, headers=headers)
    head = json.loads(answer.content[: int(answer.headers[LENGTH])])
    first, second = head["outputs"]
    assert (first["name"], first["data"]) == ("impression_id", ["o:0", "o:1"])
    assert (second["name"], second["parameters"]) == ("score", {"binary_data_size": 16})
    body, headers = binary_body(outputs=[{"name": "colour"}])
    refused = server.post("/v2/models/shop/infer", content=body, headers=headers)
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (
        422,
        ["body", "outputs", 0, "name"],
    )


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda body, length: (body, "x"), ["body"]),
        (lambda body, length: (body, str(len(body) + 1)), ["body"]),
        (lambda body, length: (body + b"?", length), ["body"]),
        (lambda body, length: (body[:-1], length), ["body", "inputs", 2, "parameters"]),
        (lambda body, length: (body.replace(b"ann", b"\xff\xfe\xfd"), length), ["body", "inputs"]),
        (lambda body, length: (body.replace(b"\x03\0\0\0a", b"\xff\0\0\0a"), length), ["body"]),
        (lambda body, length: (body[:-8] + struct.pack("<d", np.inf), length), ["body", "inputs"]),
        (lambda body, length: (body.replace(b'"shape": [2]', b'"shape": [9]'), length), ["body"]),
    ],
)
def test_a_torn_binary_body_is_refused_with_a_path(server, change, path):
    body, headers = binary_body()
    body, length = change(body, headers[LENGTH])
    answer = server.post("/v2/models/shop/infer", content=body, headers={LENGTH: length})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][: len(path)] == path


def test_grpc_tells_health_and_metadata(server, channel):
    assert call(channel, "ServerLive").live
    assert call(channel, "ServerReady").ready
    about = call(channel, "ServerMetadata")
    assert (about.name, list(about.extensions)) == ("headrace", ["binary_tensor_data"])
    model = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="shop"))
    over_rest = server.get("/v2/models/shop").json()
    assert list(model.versions) == over_rest["versions"] == ["v000001"]
    for told, same in ((model.inputs, over_rest["inputs"]), (model.outputs, over_rest["outputs"])):
        found = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in told]
        assert found == same
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="shop")).ready
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="shop", version="v000002")).ready


def test_grpc_gives_the_scores_of_rest_in_raw_and_in_typed_contents(server, channel):
    raw = call(channel, "ModelInfer", rpc_request(id="rpc"))
    expected = short_scores(server)
    assert np.frombuffer(raw.raw_output_contents[0], "<f8").tolist() == expected
    assert (raw.id, raw.model_version, raw.parameters["arm"].string_param) == (
        "rpc",
        "v000001",
        "champion",
    )
    assert raw.parameters["fallback"].string_param == "none"
    asked = pb.ModelInferRequest(model_name="shop")
    for name, kind in (("user_id", "BYTES"), ("item", "INT64")):
        asked.inputs.add(name=name, datatype=kind, shape=[2])
    asked.inputs[0].contents.bytes_contents.extend([b"ann", "zoë".encode()])
    asked.inputs[1].contents.int64_contents.extend([7, 2**62 + 1])
    asked.outputs.add(name="score")
    typed = call(channel, "ModelInfer", asked)
    assert [tensor.name for tensor in typed.outputs] == ["score"]
    assert typed.outputs[0].contents.fp64_contents[1] == expected[1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_name": "other"}, grpc.StatusCode.NOT_FOUND),
        ({"model_version": "v999999"}, grpc.StatusCode.NOT_FOUND),
        ({"model_version": "../x"}, grpc.StatusCode.NOT_FOUND),
        ({"id": "x" * 129}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"raw_input_contents": [b""]}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_grpc_says_what_is_wrong_by_status(server, channel, change, code):
    asked = rpc_request()
    asked.MergeFrom(pb.ModelInferRequest(**change))
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, "ModelInfer", asked)
    assert refused.value.code() is code


def test_a_version_asked_for_answers_and_is_marked(server, channel, settings, shop):
    champion = short_scores(server)
    second = short_scores(server, **{"x-headrace-version": "v000002"})
    assert second != champion
    body, headers = binary_body(id="pin")
    answer = server.post(
        "/v2/models/shop/versions/v000002/infer", content=body, headers=headers
    ).json()
    assert (answer["model_version"], answer["parameters"]["arm"]) == ("v000002", "pinned")
    assert answer["outputs"][0]["data"] == second
    by_rpc = call(channel, "ModelInfer", rpc_request(model_version="v000003"))
    assert by_rpc.parameters["arm"].string_param == "pinned"
    assert np.frombuffer(by_rpc.raw_output_contents[0], "<f8").tolist() not in (champion, second)
    assert short_scores(server, **{"x-headrace-version": "v000001"}) == champion
    assert short_scores(server) == champion
    until(lambda: len(served_rows(settings, shop, "pin")) == 2)
    told = [(row["version"], row["arm"]) for row in served_rows(settings, shop, "pin")]
    assert told == [("v000002", "pinned")] * 2


def test_a_version_that_is_not_there_is_named(server):
    unknown = {"x-headrace-version": "v999999"}
    answer = server.post("/v1/score", json={"candidates": [{}]}, headers=unknown)
    assert answer.status_code == 422
    assert "v999999" in answer.json()["error"]
    for path in ("", "/ready"):
        assert server.get(f"/v2/models/shop/versions/v999999{path}").status_code == 404
    about = server.get("/v2/models/shop/versions/v000003").json()
    assert about["versions"] == ["v000003"]


def test_a_taken_grpc_port_is_named(server, settings, shop):
    taken = server.app.state.grpc_port
    with pytest.raises(EnvironmentFault, match=f"port {taken} .*HEADRACE_GRPC_PORT"):
        run(replace(settings, grpc_port=taken), shop)
