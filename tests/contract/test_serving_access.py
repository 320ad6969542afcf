"""Who may ask the scoring server, and how often, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.declaration import LineSpec
from headrace.declaration.serving import RateSpec, ServingSpec
from headrace.errors import DeclarationError
from headrace.serving.access import Access, Bucket, TurnedAway
from headrace.serving.app import CONNECTIONS, create_app, run
from headrace.serving.body import LimitBody
from headrace.serving.door import Door
from headrace.serving.metrics import ServingMetrics
from headrace.serving.oip import grpc_service_pb2 as pb
from headrace.serving.oip.rpc import SERVICE
from headrace.settings import Settings, load_settings
from tests.campaign import free_port
from tests.serving import LINE, WATERMARK_US, advance, publish, until

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

SCORE, ADMIN = "score-0123456789abcdef", "admin-0123456789abcdef"
BODY = {"candidates": [{}]}
SCORED = PlainTextResponse("scored")


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def settled(applied: Settings, shop: LineSpec, home: Path) -> Settings:
    """A home of its own with two versions, of which the first serves."""
    (home / "feast").symlink_to(applied.home / "feast")
    settings = replace(applied, home=home)
    for bias in (1.0, 2.0):
        publish(settings, shop, bias, WATERMARK_US)
    advance(settings, shop, "v000001")
    return settings


@pytest.fixture(scope="module")
def settings(applied: Settings, shop: LineSpec, tmp_path_factory) -> Settings:
    return settled(applied, shop, tmp_path_factory.mktemp("access"))


@contextmanager
def served(settings: Settings, spec: LineSpec) -> Iterator[TestClient]:
    with TestClient(create_app(settings, spec, grpc_port=0)) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def locked(settings: Settings, shop: LineSpec) -> Iterator[TestClient]:
    with served(replace(settings, score_token=SCORE, admin_token=ADMIN), shop) as client:
        yield client


def infer(client: TestClient, *metadata: tuple[str, str]) -> pb.ModelInferResponse:
    asked = pb.ModelInferRequest(model_name="shop")
    tensor = asked.inputs.add(name="item", datatype="INT64", shape=[1])
    tensor.contents.int64_contents.append(7)
    with grpc.insecure_channel(f"127.0.0.1:{client.app.state.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        return call(asked, timeout=30, metadata=metadata)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer("score-0123456789abcdeX"), 401),
        ({"authorization": SCORE}, 401),
        ({"authorization": f"Basic {SCORE}"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer " + "\xff" * 20}, 401),
        (bearer(SCORE), 200),
        ({"authorization": f"bearer  {SCORE} "}, 200),
        (bearer(ADMIN), 200),
        (bearer(SCORE) | {"x-headrace-version": "v000002"}, 403),
        (bearer(ADMIN) | {"x-headrace-version": "v000002"}, 200),
        ({"x-headrace-version": "v000002"}, 401),
        (bearer(SCORE) | {"sec-fetch-site": "cross-site"}, 403),
        (bearer(SCORE) | {"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_scoring_asks_for_its_token_and_a_version_for_the_admin_s(locked, headers, status):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = locked.post("/v1/score", json=BODY, headers=raw)
    assert answer.status_code == status, answer.text
    if status == 401:
        assert answer.headers["www-authenticate"] == 'Bearer realm="headrace"'
    if status != 200:
        assert "0123456789" not in answer.text


def test_the_path_of_a_version_asks_for_the_admin_token(locked):
    tensor = {"name": "item", "shape": [1], "datatype": "INT64", "data": [1]}
    body, path = {"inputs": [tensor]}, "/v2/models/shop/versions/v000002/infer"
    assert locked.post(path, json=body, headers=bearer(SCORE)).status_code == 403
    assert locked.post(path, json=body, headers=bearer(ADMIN)).status_code == 200
    assert locked.post("/v2/models/shop/infer", json=body).status_code == 401
    assert locked.post("/v2/models/shop/infer", json=body, headers=bearer(SCORE)).is_success


def test_the_token_comes_before_the_size_of_the_body(locked):
    big = b"x" * (2 << 20)
    assert locked.post("/v1/score", content=big).status_code == 401
    assert locked.post("/v1/score", content=big, headers=bearer(SCORE)).status_code == 413


@pytest.mark.parametrize("path", ["/v1/status", "/v1/race", "/metrics"])
def test_looking_inside_asks_for_the_admin_token(locked, path):
    assert locked.get(path).status_code == 401
    assert locked.get(path, headers=bearer(SCORE)).status_code == 403
    assert locked.get(path, headers=bearer(ADMIN)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/shop", "/v2/models/shop/ready"),
    ],
)
def test_health_metadata_documents_and_the_empty_page_are_open_and_guarded_by_headers(locked, path):
    answer = locked.get(path)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_refusals_carry_the_headers_too(locked):
    for answer in (locked.get("/nowhere"), locked.post("/v1/score"), locked.get("/v1/score")):
        assert answer.status_code in (401, 404, 405)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_grpc_asks_for_the_same_tokens(locked):
    authorized = ("authorization", f"Bearer {SCORE}")
    pinned = ("x-headrace-version", "v000002")
    for metadata, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer nonsense-nonsense"),), grpc.StatusCode.UNAUTHENTICATED),
        ((authorized, pinned), grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            infer(locked, *metadata)
        assert refused.value.code() == code
    assert infer(locked, authorized).model_version == "v000001"
    admin = ("authorization", f"Bearer {ADMIN}")
    assert infer(locked, admin, pinned).model_version == "v000002"


def test_what_was_turned_away_is_counted_over_both_protocols(locked):
    def denied() -> int:
        status = locked.get("/v1/status", headers=bearer(ADMIN)).json()
        return int(status["requests"]["denied"])

    before = denied()
    locked.post("/v1/score", json=BODY)
    with pytest.raises(grpc.RpcError):
        infer(locked)
    assert denied() == before + 2


def test_without_a_token_nobody_is_asked_and_the_score_token_alone_covers_versions(settings):
    open_to_all = Access(settings, None)
    open_to_all.score(None, pinned=True)
    open_to_all.look(None)
    scoring = Access(replace(settings, score_token=SCORE), None)
    scoring.look(None)
    scoring.score(f"Bearer {SCORE}", pinned=True)
    with pytest.raises(TurnedAway, match="no token came"):
        scoring.score(None, pinned=True)
    admin = Access(replace(settings, admin_token=ADMIN), None)
    admin.score(None)
    with pytest.raises(TurnedAway, match="no token came"):
        admin.score(None, pinned=True)


def test_more_than_the_rate_is_refused_with_the_time_to_wait(applied, shop, tmp_path):
    slow = ServingSpec(rate=RateSpec(per_second=0.01, burst=3))
    limited = replace(settled(applied, shop, tmp_path), score_token=SCORE)
    with served(limited, shop.model_copy(update={"serving": slow})) as client:
        for _ in range(5):  # who shows no token does not use up the rate
            assert client.post("/v1/score", json=BODY).status_code == 401
        for _ in range(2):
            assert client.post("/v1/score", json=BODY, headers=bearer(SCORE)).status_code == 200
        assert infer(client, ("authorization", f"Bearer {SCORE}")).model_version == "v000001"
        answer = client.post("/v1/score", json=BODY, headers=bearer(SCORE))
        assert answer.status_code == 429
        assert 90 <= int(answer.headers["retry-after"]) <= 100
        assert "serving.rate" in answer.json()["error"]
        with pytest.raises(grpc.RpcError) as refused:
            infer(client, ("authorization", f"Bearer {SCORE}"))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 90 <= int(dict(refused.value.trailing_metadata())["retry-after"]) <= 100
        assert client.get("/v1/status").json()["requests"]["limited"] == 2


def test_a_bucket_fills_at_its_rate_and_no_further_than_its_burst():
    now = 0.0
    bucket = Bucket(RateSpec(per_second=10, burst=2), clock=lambda: now)
    assert [bucket.take() for _ in range(3)] == [0, 0, pytest.approx(0.1)]
    now = 0.05
    assert bucket.take() == pytest.approx(0.05)
    now = 0.1
    assert [bucket.take(), bucket.take()] == [0, pytest.approx(0.1)]
    now = 60.0
    assert [bucket.take() for _ in range(3)] == [0, 0, pytest.approx(0.1)]


def test_a_burst_is_one_second_s_worth_where_it_is_left_out():
    assert RateSpec(per_second=2.5).at_once == 3
    assert RateSpec(per_second=100, burst=7).at_once == 7


@pytest.mark.parametrize("name", ["HEADRACE_SCORE_TOKEN", "HEADRACE_ADMIN_TOKEN"])
@pytest.mark.parametrize("value", ["short", "has a space in it", "ümlaut-0123456789", "x" * 513])
def test_a_weak_token_is_refused_by_its_name_and_never_shown(name, value):
    with pytest.raises(DeclarationError, match=name) as refused:
        load_settings({name: value})
    assert value not in str(refused.value)


def test_a_token_is_never_part_of_what_is_printed_or_logged(applied, shop, tmp_path, caplog):
    secret = replace(settled(applied, shop, tmp_path), score_token=SCORE, admin_token=ADMIN)
    assert SCORE not in repr(secret)
    assert ADMIN not in repr(secret)
    assert secret.score_headers == bearer(SCORE)
    with caplog.at_level(logging.DEBUG), served(secret, shop) as client:
        client.post("/v1/score", json=BODY, headers=bearer(SCORE))
        client.post("/v1/score", json=BODY, headers=bearer(SCORE + "x"))
        with pytest.raises(grpc.RpcError):
            infer(client, ("authorization", f"Bearer {SCORE}x"))
    assert SCORE not in caplog.text


def through_the_door(
    messages: list[dict[str, object] | None], inside: ASGIApp = SCORED
) -> tuple[list[int], dict[str, int]]:
    """Statuses of the answers to a POST whose body comes as these messages, and the counts.

    None in place of a message: the sender takes his time before the next one.
    """
    metrics = ServingMetrics(LINE)
    inner = LimitBody(inside, max_bytes=8, max_s=0.05)
    door = Door(inner, Access(load_settings({}), None), metrics)
    coming, statuses = iter(messages), []

    async def receive() -> dict[str, object]:
        for message in coming:
            if message is not None:
                return message
            await asyncio.sleep(0.001)
        await asyncio.sleep(60)
        raise AssertionError("nobody waits so long")

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": []}
    asyncio.run(door(scope, receive, send))
    return statuses, {outcome: n for outcome, n in metrics.counts().items() if n}


def test_a_body_that_comes_too_slowly_too_large_or_not_at_all_ends():
    part = {"type": "http.request", "body": b"abcdef", "more_body": True}
    end = {"type": "http.request", "body": b"g", "more_body": False}
    gone = {"type": "http.disconnect"}
    assert through_the_door([part, end]) == ([200], {"answered": 1})
    assert through_the_door([part]) == ([408], {"refused": 1})
    assert through_the_door([part, part]) == ([413], {"refused": 1})
    assert through_the_door([part, gone]) == ([], {"left": 1})
    assert through_the_door([]) == ([408], {"refused": 1})
    assert through_the_door([None, part]) == ([408], {"refused": 1})
    assert through_the_door([None, part, part]) == ([413], {"refused": 1})
    assert through_the_door([None, gone]) == ([], {"left": 1})


def test_a_body_is_handed_on_whole_however_it_came():
    part = {"type": "http.request", "body": b"abc", "more_body": True}
    end = {"type": "http.request", "body": b"defg"}
    gone = {"type": "http.disconnect"}
    seen = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append([await receive(), await receive()])
        await PlainTextResponse("scored")(scope, receive, send)

    for wait in ([], [None]):
        told = through_the_door([*wait, part, *wait, *wait, end, gone], inside)
        assert told == ([200], {"answered": 1})
    whole = {"type": "http.request", "body": b"abcdefg", "more_body": False}
    assert seen == [[whole, gone]] * 2


def test_who_waits_for_a_body_lets_go_of_it_when_he_is_stopped():
    ended = []

    async def never() -> dict[str, object]:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("receive")
        raise AssertionError("nobody waits so long")

    async def unused(*_: object) -> None:
        raise AssertionError("there is nothing to answer")

    async def stopped() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": []}
        asked = asyncio.create_task(LimitBody(unused, 8, 60)(scope, never, unused))
        await asyncio.sleep(0.001)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert ended == ["receive"]

    asyncio.run(stopped())


@pytest.mark.parametrize(
    ("host", "token", "warns"),
    [
        ("127.0.0.1", None, False),
        ("127.0.0.9", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("0.0.0.0", SCORE, False),
    ],
)
def test_a_server_that_others_reach_without_a_token_says_so(
    settings, shop, monkeypatch, caplog, host, token, warns
):
    class Started:
        started = True

        def __init__(self, config: uvicorn.Config) -> None:
            assert config.limit_concurrency == CONNECTIONS

        def run(self, sockets: list[socket.socket]) -> None:
            for each in sockets:
                each.close()

    monkeypatch.setattr(uvicorn, "Server", Started)
    ports = {"server_port": free_port(), "grpc_port": free_port()}
    run(replace(settings, host=host, score_token=token, **ports), shop)
    assert ("may score; set HEADRACE_SCORE_TOKEN" in caplog.text) is warns
