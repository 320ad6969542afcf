"""The scoring server of a line: HTTP and gRPC over one scorer, its threads, its start and end."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from importlib.metadata import version as package_version
from typing import Final

from fastapi import FastAPI

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import served_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.serving.access import Access
from headrace.serving.answer import Answers
from headrace.serving.arms import SHADOW_SCHEMA, Arms
from headrace.serving.body import LimitBody
from headrace.serving.chronicle import Chronicle, Lookout
from headrace.serving.desk import Desk
from headrace.serving.door import Door
from headrace.serving.features import Features
from headrace.serving.insight import inside_routes
from headrace.serving.metrics import ServingMetrics
from headrace.serving.oip.about import About
from headrace.serving.oip.rest import InferRequest
from headrace.serving.oip.rpc import RpcServer
from headrace.serving.openapi import describe
from headrace.serving.overview import Overview
from headrace.serving.payload import MAX_BODY_BYTES, score_request
from headrace.serving.pinned import Pinned
from headrace.serving.prior import Prior
from headrace.serving.refusal import refuse
from headrace.serving.routes import protocol_routes, score_routes
from headrace.serving.scored import ServedTables
from headrace.serving.scorer import Scorer
from headrace.serving.served import ServedWriter
from headrace.serving.swap import Follower
from headrace.serving.together import Together
from headrace.settings import Settings
from headrace.store import Store

LOG = logging.getLogger(__name__)
MAX_BODY_S: Final = 10.0
CONNECTIONS: Final = 512
"""Open at once over HTTP, idle ones included; more are answered 503."""


def create_app(
    settings: Settings,
    spec: LineSpec,
    *,
    grpc_port: int | None = None,
    settled: Callable[[], None] | None = None,
) -> FastAPI:
    """The server of one line; with `grpc_port` also over gRPC (0: any free port).

    Threads start, the served log is locked and gRPC listens at application start. `settled` is
    called once when all that stays in memory is there.
    """
    access, metrics = Access(settings, spec.serving.rate), ServingMetrics(spec)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as ends:
            scorer = _start(app, settings, spec, metrics, ends, settled=settled)
            if grpc_port is not None:
                address = f"{settings.host}:{grpc_port}"
                rpc = RpcServer(app.state.about, scorer, address, access, metrics)
                app.state.grpc_port = rpc.start()
                ends.callback(rpc.stop)
            yield

    app = FastAPI(
        title=f"Headrace: {spec.line}",
        version=package_version("headrace"),
        description=spec.description,
        lifespan=lifespan,
        redoc_url=None,
    )
    refuse(app)
    app.include_router(score_routes(spec))
    app.include_router(protocol_routes(spec))
    app.include_router(inside_routes())
    app.add_middleware(Desk, routes=app.routes, known={"line": spec.line})
    app.add_middleware(LimitBody, max_bytes=MAX_BODY_BYTES, max_s=MAX_BODY_S)
    app.add_middleware(Door, access=access, metrics=metrics)
    describe(app, score_request(spec), InferRequest)
    return app


def _start(
    app: FastAPI,
    settings: Settings,
    spec: LineSpec,
    metrics: ServingMetrics,
    ends: ExitStack,
    *,
    settled: Callable[[], None] | None,
) -> Scorer:
    """Start what answers, in `app.state`; `ends` stops it again."""
    home = settings.line_home(spec.line)
    log = FileLog(home / "log" / "served", served_schema(spec), writer=True)
    ends.callback(log.close)
    tables = ServedTables(spec)
    served = ServedWriter(log, policy=spec.serving.log_policy, to_table=tables.table)
    lines = LineStore(settings.line_store_url(spec.line), spec.line)
    models = Follower(spec, lines, settled=settled)
    pinned = Pinned(spec, lines, models)
    dark = FileLog(home / "log" / "shadow", SHADOW_SCHEMA, writer=True)
    ends.callback(dark.close)
    shadows = ServedWriter(dark, policy="shed")
    arms = Arms(spec, lines, shadows)
    store = Store(settings, timeout_s=spec.serving.read_timeout / 1e6)
    features = Features(spec, store)
    answers = Answers(spec, features, models, pinned, Prior(spec, lines))
    scorer = Scorer(spec, answers, served, tables, arms=arms)
    about = About(spec, models, pinned)
    app.state.models, app.state.served = models, served
    app.state.scorer, app.state.together = scorer, Together(scorer)
    app.state.about, app.state.arms, app.state.answers = about, arms, answers
    features.start()
    ends.callback(features.stop)
    served.start()
    ends.callback(served.stop)
    shadows.start()
    ends.callback(shadows.stop)
    models.start(prepare=answers.warm)
    ends.callback(models.stop)
    arms.start()
    ends.callback(arms.stop)
    metrics.follows(models, served, features)
    lookout = Lookout(Chronicle(lines, home).look)
    ends.callback(lookout.stop)
    app.state.metrics = metrics
    app.state.overview = Overview(
        spec,
        models,
        served,
        arms,
        answers=answers,
        features=features,
        metrics=metrics,
        lookout=lookout,
    )
    return scorer


def run(settings: Settings, spec: LineSpec) -> None:
    """Serve until SIGTERM or SIGINT; everything accepted is logged before it returns.

    Raises `EnvironmentFault` when a port is taken.
    """
    import uvicorn

    _listen(settings.host, settings.grpc_port, "HEADRACE_GRPC_PORT").close()
    listener = _listen(settings.host, settings.server_port, "HEADRACE_SERVER_PORT")
    app = create_app(settings, spec, grpc_port=settings.grpc_port, settled=_settle)
    if settings.score_token is None and not settings.on_loopback:
        LOG.warning(
            "%s: whoever reaches %s may score; set HEADRACE_SCORE_TOKEN and HEADRACE_ADMIN_TOKEN",
            spec.line,
            settings.host,
        )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        proxy_headers=False,  # nobody asks who is before a proxy
        limit_concurrency=CONNECTIONS,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise EnvironmentFault(f"{spec.line}: the server did not start; its log says why")


def _settle() -> None:
    """Take what is there by now out of the garbage collector's rounds, for it stays.

    A million objects of TensorFlow, Feast and both models: to look through them once halts all
    answers for 50 to 300 ms.
    """
    gc.collect()
    gc.freeze()


def _listen(host: str, port: int, setting: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as problem:
        listener.close()
        raise EnvironmentFault(
            f"port {port} on {host} is not free ({problem.strerror}); "
            f"stop what uses it or set {setting}"
        ) from None
    return listener
