"""The routes: `/v1/score` and `/v1/race` for people, Open Inference Protocol v2 for all else.

Bodies, each one message (`LimitBody`), are parsed on the event loop, where they are scored too,
those that wait together (docs/adr/0036): validation by pydantic's own JSON parser and binary
tensors both start from the bytes. The OpenAPI document therefore names the bodies by hand
(`openapi.describe`). A request that pins a version may load a model, so it has a thread of
Starlette's pool.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from headrace.declaration import LineSpec
from headrace.raw import Candidates
from headrace.serving import payload
from headrace.serving.oip import rest
from headrace.serving.oip.about import SERVER, About
from headrace.serving.oip.tensors import candidates_of
from headrace.serving.openapi import body, guarded, pin_header
from headrace.serving.scored import Scored
from headrace.serving.scorer import Asked

_REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": payload.Refusal},
    **{status: {"model": payload.Problem} for status in (401, 403, 408, 413, 429, 503)},
}
LOCKED: dict[int | str, dict[str, Any]] = {status: _REFUSALS[status] for status in (401, 403)}
_OF_A_MODEL = _REFUSALS | {404: {"model": payload.Problem}}
_READY: dict[int | str, dict[str, Any]] = {at: _OF_A_MODEL[at] for at in (404, 422, 503)}


def score_routes(spec: LineSpec) -> APIRouter:
    """`/v1/score`, `/v1/race`."""
    router = APIRouter(tags=["score"])
    body_type = payload.score_request(spec)

    @router.post(
        "/v1/score",
        response_model=payload.ScoreResponse,
        responses=_REFUSALS,
        openapi_extra=body(body_type.__name__) | pin_header() | guarded(),
    )
    async def score(request: Request) -> Response:
        """Score candidates; `context` holds what they share."""
        raw, pin = (await request.receive())["body"], _header(request, payload.VERSION_HEADER)
        said: Any = body_type.model_validate_json(raw)
        candidates = payload.candidates_of(spec, said)
        scored = await _score(request, said.request_id, candidates, pin)
        return Response(to_json(payload.score_answer(scored)), media_type="application/json")

    @router.get("/v1/race", responses=LOCKED, openapi_extra=guarded())
    def race(request: Request) -> dict[str, Any]:
        """Which arms race at this server, with shares and odds; null while none does."""
        return {"line": spec.line, "race": request.app.state.arms.about()}

    return router


def protocol_routes(spec: LineSpec) -> APIRouter:
    """`/v2`."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("")
    def server_metadata() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return SERVER

    @router.get("/health/live")
    def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready", responses={503: _REFUSALS[503]})
    def ready(request: Request) -> dict[str, bool]:
        """A champion, or who stands in for it, is loaded, and the feature store was asked."""
        _about(request).ready_version(spec.line)
        return {"ready": True}

    @router.get("/models/{line}", responses={404: _OF_A_MODEL[404]})
    @router.get("/models/{line}/versions/{version}", responses={404: _OF_A_MODEL[404]})
    def model_metadata(
        request: Request, line: str, version: str | None = None
    ) -> rest.ModelMetadata:
        """Inputs, outputs, and the version that is served or was asked for."""
        told = _about(request).model(line, version)
        state = request.app.state
        delivery = state.models.delivery() | {"fallback": state.answers.about()}
        return rest.ModelMetadata(**told, delivery=delivery)

    @router.get("/models/{line}/ready", responses=_READY)
    @router.get("/models/{line}/versions/{version}/ready", responses=_READY)
    def model_ready(request: Request, line: str, version: str | None = None) -> dict[str, Any]:
        """The line's champion is loaded, or the version can be asked for."""
        answers = _about(request).ready_version(line, version)
        return {"name": spec.line, "ready": True, "version": answers}

    extra = body(rest.InferRequest.__name__, binary=True) | guarded()
    said: dict[str, Any] = {"response_model": rest.InferResponse, "responses": _OF_A_MODEL}

    @router.post("/models/{line}/infer", openapi_extra=extra | pin_header(), **said)
    @router.post("/models/{line}/versions/{version}/infer", openapi_extra=extra, **said)
    async def infer(request: Request, line: str, version: str | None = None) -> Response:
        """Score candidates given as one tensor for each declared column."""
        pin = version or _header(request, payload.VERSION_HEADER)
        _about(request).check(line, None)
        length = _header(request, rest.JSON_LENGTH)
        raw = (await request.receive())["body"]
        asked, inputs = rest.read_request(raw, length)
        wanted = rest.wanted_outputs(spec, asked)
        scored = await _score(request, asked.id, candidates_of(spec, inputs), pin)
        content, headers = rest.write_answer(spec, scored, wanted)
        return Response(content, headers=headers)

    return router


async def _score(
    request: Request, request_id: str | None, candidates: Candidates, pin: str | None
) -> Scored:
    """Beside those that wait too, or in a thread where a version may have to be loaded."""
    state, name = request.app.state, request_id or os.urandom(16).hex()
    if pin is not None:
        return await run_in_threadpool(state.scorer.score, name, candidates, pin)
    scored: Scored = await state.together.score(Asked(name, candidates))
    return scored


def _header(request: Request, name: str) -> str | None:
    """The first of that name, as `request.headers` has it, without what that costs."""
    raw = name.encode()
    return next((v.decode("latin-1") for n, v in request.scope["headers"] if n == raw), None)


def _about(request: Request) -> About:
    about: About = request.app.state.about
    return about
