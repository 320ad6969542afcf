"""Made-up messages to the gRPC service: each is answered or refused by name, and it goes on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.declaration import LineSpec
from headrace.serving.app import create_app
from headrace.serving.oip import grpc_service_pb2 as pb
from headrace.serving.oip.rpc import SERVICE
from headrace.settings import Settings
from tests.contract.test_inference_protocol import call, rpc_request
from tests.contract.test_outside_bytes import TRIED, damaged
from tests.serving import WATERMARK_US, advance, publish, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

WHOLE = rpc_request().SerializeToString()
REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
TEXT = st.text(max_size=6)
NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
CONTENTS = st.builds(
    pb.InferTensorContents,
    bytes_contents=st.lists(st.binary(max_size=6), max_size=3),
    int64_contents=NUMBERS,
    fp64_contents=st.lists(st.floats(), max_size=3),
    bool_contents=st.lists(st.booleans(), max_size=2),
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["user_id", "item", "price", "score"]) | TEXT,
    datatype=st.sampled_from(["BYTES", "INT64", "FP64", "FP32"]) | TEXT,
    shape=st.sampled_from([[1], [2], [0], [-1], [2, 2], []]) | NUMBERS,
    contents=CONTENTS,
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["shop", "shop", "nobody"]),
    model_version=st.sampled_from(["", "", "v000001", "v9"]) | TEXT,
    id=TEXT,
    inputs=st.lists(INPUTS, max_size=4),
    outputs=st.lists(
        st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=TEXT), max_size=1
    ),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=3),
).map(lambda asked: asked.SerializeToString())


@pytest.fixture(scope="module")
def channel(
    applied: Settings, shop: LineSpec, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[grpc.Channel]:
    home = tmp_path_factory.mktemp("grpc")
    (home / "feast").symlink_to(applied.home / "feast")
    own = replace(applied, home=home)
    publish(own, shop, 1.0, WATERMARK_US)
    advance(own, shop, "v000001")
    with TestClient(create_app(own, shop, grpc_port=0)) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        where = f"127.0.0.1:{client.app.state.grpc_port}"  # type: ignore[attr-defined]
        with grpc.insecure_channel(where) as opened:
            yield opened


def test_messages_of_any_bytes_are_answered_or_refused(channel: grpc.Channel) -> None:
    send = channel.unary_unary(f"/{SERVICE}/ModelInfer", None, pb.ModelInferResponse.FromString)
    seen: Counter[str] = Counter()

    @settings(parent=TRIED, max_examples=200)
    @given(st.one_of(REQUESTS, damaged(WHOLE), st.binary(max_size=40), st.just(WHOLE)))
    def holds(raw: bytes) -> None:
        try:
            answer = send(raw, timeout=30)
        except grpc.RpcError as problem:
            seen[problem.code().name] += 1
            unread = problem.details() == "Exception deserializing request!"  # grpc's own word
            assert unread or problem.code() in REFUSED, (problem.code(), problem.details())
            assert problem.details()
        else:
            seen["answered"] += 1
            assert answer.model_name == "shop"

    holds()
    assert seen["answered"] and seen["INVALID_ARGUMENT"], seen
    assert len(call(channel, "ModelInfer", rpc_request()).outputs) > 0
