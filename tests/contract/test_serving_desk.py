"""Scoring requests take the straight way to their functions, and are answered as by FastAPI's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.serving.app import create_app
from headrace.serving.desk import Desk
from headrace.serving.payload import MAX_BODY_BYTES
from headrace.settings import Settings
from tests.contract.test_serving import TestClient
from tests.serving import WATERMARK_US, advance, publish, until

JSON_LENGTH = "inference-header-content-length"
ROWS = json.dumps({"request_id": "r", "candidates": [{"item": 1}, {"user_id": "zoë"}]}).encode()
ITEM = {"name": "item", "shape": [2], "datatype": "INT64", "data": [1, None]}
TENSORS = json.dumps({"id": "t", "inputs": [ITEM]}).encode()
BINARY = json.dumps({"id": "b", "inputs": [ITEM], "outputs": [{"name": "score"}]}).encode()
BINARY = BINARY.replace(b'"score"', b'"score", "parameters": {"binary_data": true}')


@pytest.fixture(scope="module")
def ways(applied: Settings, shop: LineSpec) -> Iterator[tuple[TestClient, TestClient]]:
    """A server, and one that has no desk but all that the first one started."""
    with TestClient(create_app(applied, shop)) as straight:
        publish(applied, shop, 1.0, WATERMARK_US)
        advance(applied, shop, "v000001")
        until(lambda: straight.get("/v2/health/ready").status_code == 200)
        app = create_app(applied, shop)
        kept = [each for each in app.user_middleware if each.cls is not Desk]
        assert len(kept) == len(app.user_middleware) - 1
        app.user_middleware, app.state = kept, straight.app.state
        yield straight, TestClient(app)


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/v1/score", ROWS, {}, 200),
        ("/v1/score", ROWS, {"x-headrace-version": "v000001"}, 200),
        ("/v1/score", ROWS, {"x-headrace-version": "v000009"}, 422),
        ("/v1/score", b"", {}, 422),
        ("/v1/score", b'{"candidates": [{"item": "5"}]}', {}, 422),
        ("/v1/score", b'{"candidates": [{"\\ud800": 1}]}', {}, 422),
        ("/v1/score", b"x" * (MAX_BODY_BYTES + 1), {}, 413),
        ("/v1/score", ROWS, {"sec-fetch-site": "cross-site"}, 403),
        ("/v1/score/", ROWS, {}, 307),
        ("/v2/models/shop/infer", TENSORS, {}, 200),
        ("/v2/models/shop/infer", BINARY, {JSON_LENGTH: str(len(BINARY))}, 200),
        ("/v2/models/shop/infer", BINARY, {JSON_LENGTH: str(len(BINARY) + 1)}, 422),
        ("/v2/models/shop/infer", TENSORS.replace(b"item", b"colour"), {}, 422),
        ("/v2/models/shop/versions/v000001/infer", TENSORS, {}, 200),
        ("/v2/models/other/infer", TENSORS, {}, 404),
        ("/v2/models/shop/nowhere", TENSORS, {}, 404),
        ("/v2/models/shop", TENSORS, {}, 405),
    ],
)
def test_both_ways_give_the_same_status_headers_and_body(ways, path, content, headers, status):
    def told(client: TestClient) -> tuple[Any, ...]:
        answer = client.post(path, content=content, headers=headers, follow_redirects=False)
        size = int(answer.headers.get(JSON_LENGTH, len(answer.content)))
        body = json.loads(answer.content[:size] or b"null")
        if status == 200:  # how old the model is, to the microsecond
            for about in (body, body.get("parameters", {})):
                about.pop("staleness_s", None)
        names = [*answer.headers]
        return answer.status_code, names, answer.headers["content-type" if body else "location"], (
            body, answer.content[size:])  # fmt: skip

    straight, around = (told(client) for client in ways)
    assert straight == around
    assert straight[0] == status


def test_an_error_of_the_server_is_one_by_both_ways(ways, monkeypatch):
    async def broken(_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(ways[0].app.state.together, "score", broken)
    for client in ways:
        quiet = TestClient(client.app, raise_server_exceptions=False)
        answer = quiet.post("/v1/score", content=ROWS)
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        with pytest.raises(ZeroDivisionError):
            client.post("/v1/score", content=ROWS)


async def unreached(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"around: {scope['method']} {scope['path']}")(scope, receive, send)


def test_the_desk_takes_posts_whose_path_is_known_and_no_others():
    app = FastAPI()

    @app.post("/fixed")
    async def fixed(request: Request) -> Response:
        return Response(await request.body())

    @app.post("/of/{line}/it")
    @app.post("/of/{line}/{version}/it")
    async def of(request: Request, line: str, version: str | None = None) -> Response:
        if await request.body() == b"bad":
            raise InputError(f"{line} {version}")
        return Response(f"{line} {version}")

    @app.get("/of/{line}/it")
    async def read(line: str) -> str:
        return line

    client = TestClient(Desk(unreached, app.routes, {"line": "shop"}))
    assert client.post("/fixed", content=b"said").text == "said"
    assert client.post("/of/shop/it").text == "shop None"
    bad = client.post("/of/shop/it", content=b"bad")
    assert (bad.status_code, bad.json()) == (422, {"error": "shop None"})
    for method, path in (
        *(("POST", "/of/other/it"), ("POST", "/of/shop/v1/it"), ("POST", "/fixed/")),
        *(("GET", "/of/shop/it"), ("GET", "/fixed"), ("PUT", "/fixed"), ("POST", "/of/{line}/it")),
    ):
        assert client.request(method, path).text == f"around: {method} {path}"
