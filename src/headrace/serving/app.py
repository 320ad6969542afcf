"""HTTP: `/v1/score` for people and Open Inference Protocol v2 for everything else.

Routes are plain functions: Starlette runs them in its thread pool, and reading features is
Python work on a local file, for which an event loop would have nothing to overlap.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, HeadraceError, InputError
from headrace.events import served_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.serving import payload
from headrace.serving.body import LimitBody
from headrace.serving.scorer import Scored, Scorer
from headrace.serving.served import ServedWriter
from headrace.serving.swap import Follower
from headrace.settings import Settings
from headrace.store import Store

_REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": payload.Problem},
    503: {"model": payload.Problem},
}


def create_app(settings: Settings, spec: LineSpec) -> FastAPI:
    """The server of one line. Threads start and the served log is locked at application start."""
    home = settings.line_home(spec.line)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log = FileLog(home / "log" / "served", served_schema(spec), writer=True)
        served = ServedWriter(log)
        models = Follower(spec, LineStore(settings.line_store_url(spec.line), spec.line))
        scorer = Scorer(spec, Store(settings), models, served)
        app.state.models, app.state.served, app.state.scorer = models, served, scorer
        served.start()
        models.start(prepare=scorer.warm)
        try:
            yield
        finally:
            models.stop()
            try:
                served.stop()
            finally:
                log.close()

    app = FastAPI(
        title=f"Headrace: {spec.line}",
        version=package_version("headrace"),
        description=spec.description,
        lifespan=lifespan,
    )
    app.add_middleware(LimitBody, max_bytes=payload.MAX_BODY_BYTES)
    app.add_exception_handler(HeadraceError, _refuse)
    app.add_exception_handler(RequestValidationError, _explain)
    app.include_router(_score_routes(spec))
    app.include_router(_protocol_routes(spec))
    return app


def run(settings: Settings, spec: LineSpec) -> None:
    """Serve until SIGTERM or SIGINT; everything accepted is logged before it returns.

    Raises `EnvironmentFault` when the port is taken.
    """
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.server_port))
    except OSError as problem:
        listener.close()
        raise EnvironmentFault(
            f"port {settings.server_port} on {settings.host} is not free ({problem.strerror}); "
            "stop what uses it or set HEADRACE_SERVER_PORT"
        ) from None
    config = uvicorn.Config(
        create_app(settings, spec), log_level="warning", access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise EnvironmentFault(f"{spec.line}: the server did not start; its log says why")


def _score_routes(spec: LineSpec) -> APIRouter:
    router = APIRouter(tags=["score"])
    body_type = payload.score_request(spec)

    def score(request: Request, body: Any) -> payload.ScoreResponse:
        """Score candidates; `context` holds what they share."""
        request_id = body.request_id or uuid.uuid4().hex
        scored = _scorer(request).score(request_id, payload.rows_of_score(body))
        return payload.ScoreResponse(
            request_id=scored.request_id,
            version=scored.version,
            watermark=_iso(scored.watermark_us),
            staleness_s=scored.staleness_s,
            scores=[
                payload.Score(impression_id=name, score=value)
                for name, value in zip(scored.impression_ids, scored.scores.tolist(), strict=True)
            ],
        )

    score.__annotations__["body"] = body_type  # the type exists only at run time
    router.post("/v1/score", response_model=payload.ScoreResponse, responses=_REFUSALS)(score)
    return router


def _protocol_routes(spec: LineSpec) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("")
    def server_metadata() -> dict[str, Any]:
        """Name and version of the server."""
        return {"name": "headrace", "version": package_version("headrace"), "extensions": []}

    @router.get("/health/live")
    def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready", responses=_REFUSALS)
    def ready(request: Request) -> dict[str, bool]:
        """A champion is loaded and the feature store was read."""
        request.app.state.models.current()
        return {"ready": True}

    @router.get("/models/{line}")
    def model_metadata(request: Request, line: str) -> dict[str, Any]:
        """Inputs, outputs, and the version that is served."""
        _same_line(spec, line)
        models: Follower = request.app.state.models
        return {
            "name": spec.line,
            "versions": [models.current().version.version] if models.ready else [],
            "delivery": models.delivery(),
            "platform": f"headrace_{spec.model.family}",
            "inputs": [
                {"name": name, "datatype": payload.DATATYPES[kind], "shape": [-1]}
                for name, kind in spec.columns.items()
            ],
            "outputs": [
                {"name": "score", "datatype": "FP64", "shape": [-1]},
                {"name": "impression_id", "datatype": "BYTES", "shape": [-1]},
            ],
        }

    @router.get("/models/{line}/ready", responses=_REFUSALS)
    def model_ready(request: Request, line: str) -> dict[str, Any]:
        """The line's champion is loaded."""
        _same_line(spec, line)
        loaded = request.app.state.models.current()
        return {"name": spec.line, "ready": True, "version": loaded.version.version}

    @router.post("/models/{line}/infer", responses=_REFUSALS)
    def infer(request: Request, line: str, body: payload.InferRequest) -> payload.InferResponse:
        """Score candidates given as one tensor for each declared column."""
        _same_line(spec, line)
        rows = payload.rows_of_tensors(spec, body)
        return _infer_response(spec, _scorer(request).score(body.id or uuid.uuid4().hex, rows))

    return router


def _infer_response(spec: LineSpec, scored: Scored) -> payload.InferResponse:
    size = len(scored.impression_ids)
    return payload.InferResponse(
        model_name=spec.line,
        model_version=scored.version,
        id=scored.request_id,
        parameters={
            "version": scored.version,
            "watermark": _iso(scored.watermark_us),
            "staleness_s": scored.staleness_s,
            "request_id": scored.request_id,
        },
        outputs=[
            payload.OutputTensor(
                name="score", datatype="FP64", shape=[size], data=scored.scores.tolist()
            ),
            payload.OutputTensor(
                name="impression_id", datatype="BYTES", shape=[size], data=scored.impression_ids
            ),
        ],
    )


def _scorer(request: Request) -> Scorer:
    scorer: Scorer = request.app.state.scorer
    return scorer


def _same_line(spec: LineSpec, line: str) -> None:
    if line != spec.line:
        raise HTTPException(404, f"this server serves {spec.line!r}, not {line!r}")


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds")


async def _explain(_: Request, problem: Exception) -> Response:
    """FastAPI's own answer without the echo of the input, which may be large or no JSON (NaN)."""
    assert isinstance(problem, RequestValidationError)
    detail = [{key: error[key] for key in ("type", "loc", "msg")} for error in problem.errors()]
    # ASCII with escapes: a field's name may hold half a surrogate pair
    return Response(json.dumps({"detail": detail}), 422, media_type="application/json")


async def _refuse(_: Request, problem: Exception) -> JSONResponse:
    status = 422 if isinstance(problem, InputError) else 503
    return JSONResponse({"error": str(problem)}, status)
