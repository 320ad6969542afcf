"""The collector: events over HTTP, durable before they are acknowledged.

A malformed event is refused with its reason and kept in `malformed.jsonl`; it never enters
the log. A request that finds no room is refused as a whole and can be sent again (`limits`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import event_schema
from headrace.ingest.commit import Committer
from headrace.ingest.door import Door
from headrace.ingest.intake import Intake, TooMany
from headrace.ingest.limits import Admission, Held, Refusal, free_bytes
from headrace.ingest.malformed import SideLog
from headrace.ingest.metrics import IngestMetrics
from headrace.log.stamp import EventWriter, clock_us
from headrace.sample import head_tick, read_tick
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
_GRACE_S: Final = 5  # how long requests in flight may take to end; longer than `Limits.body_s`


class Collector:
    """The HTTP server of the collector, in threads of its own."""

    def __init__(
        self,
        settings: Settings,
        spec: LineSpec,
        writer: EventWriter,
        admission: Admission,
        metrics: IngestMetrics,
    ) -> None:
        home = settings.line_home(spec.line)
        self._listener = _listen(settings.host, settings.collector_port)
        self._side = SideLog(home / "malformed.jsonl")
        self._committer = Committer(writer, event_schema(spec), metrics)
        self._admission = admission
        intake = Intake(spec, admission.limits.body_events)
        door = Door(settings)
        events = EventsRoute(intake, admission, self._committer, self._side, metrics, door=door)
        metrics.observe(gauges(admission, writer, home))
        app = create_app(spec, home, writer, events, metrics)
        door.warn(spec.line)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                limit_concurrency=admission.limits.connections,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="collector", daemon=True
        )

    def start(self) -> None:
        """Begin to answer; returns when the server does."""
        self._committer.start()
        self._thread.start()
        while not self._server.started:
            self.check()
            time.sleep(0.01)

    def check(self) -> None:
        """Raise `EnvironmentFault` when the server has died."""
        if not self._thread.is_alive():
            raise EnvironmentFault("the collector's HTTP server ended unexpectedly; see its log")

    def stop(self) -> None:
        """Refuse what comes, answer what came in, store it, and end; takes 6 s at most."""
        self._admission.stopping = True
        self._server.should_exit = True
        self._thread.join()
        self._committer.stop()
        self._listener.close()
        self._side.close()


class EventsRoute:
    """`POST /v1/events`: all of a request's events are taken, or none."""

    def __init__(
        self,
        intake: Intake,
        admission: Admission,
        committer: Committer,
        side: SideLog,
        metrics: IngestMetrics,
        *,
        door: Door,
    ) -> None:
        self.door = door
        self._intake = intake
        self._admission = admission
        self._committer = committer
        self._metrics = metrics
        self.side = side

    async def __call__(self, request: Request) -> Response:
        """Answer one request: 200 when all of it is durable, otherwise why not."""
        try:
            self.door.send(request.headers.get("authorization"))
            with self._admission.request() as held:
                return await self._take(await self._body(request, held), held)
        except Refusal as refusal:
            self._metrics.refused.labels(refusal.reason).inc()
            return await _refused(request, refusal)

    async def _body(self, request: Request, held: Held) -> bytes:
        """The whole body, counted while it comes, whatever length its header claims."""
        body = bytearray()
        limit_s = self._admission.limits.body_s
        try:
            async with asyncio.timeout(limit_s):
                async for chunk in request.stream():
                    self._admission.hold_bytes(held, len(chunk))
                    body += chunk
        except TimeoutError:
            why = f"the body took longer than {limit_s:g} s; send less at once"
            raise Refusal(408, "body_too_slow", why, 1) from None
        except ClientDisconnect:
            raise Refusal(400, "sender_left", "the connection ended within the body") from None
        return bytes(body)

    async def _take(self, body: bytes, held: Held) -> Response:
        now_us = clock_us()
        try:
            rows, refused, readable = self._intake.read(body, now_us)
        except TooMany as problem:
            raise Refusal(413, "too_many_events", str(problem)) from None
        self._admission.hold_rows(held, len(rows))
        try:
            if refused:
                await asyncio.to_thread(self.side.add, refused, now_us)
            if rows:
                await asyncio.wrap_future(self._committer.put(rows))
        except Exception as problem:
            LOG.error("events not stored: %s", problem)
            why = f"not stored, send again: {problem}"
            raise Refusal(503, "not_stored", why, 5) from problem
        self._metrics.accepted.inc(len(rows))
        self._metrics.malformed.inc(len(refused))
        answer: dict[str, object] = {"accepted": len(rows), "malformed": len(refused)}
        if refused:
            answer["reasons"] = [why for why, _ in refused[:10]]
        return JSONResponse(answer, 200 if readable else 400)


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    headers = {}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.status == 401:
        headers["www-authenticate"] = 'Bearer realm="headrace"'
    if refusal.reason == "stopping":
        headers["connection"] = "close"
    said = {"detail": refusal.detail, "reason": refusal.reason}
    return JSONResponse(said, refusal.status, headers)


def create_app(
    spec: LineSpec, home: Path, writer: EventWriter, events: EventsRoute, metrics: IngestMetrics
) -> FastAPI:
    """The collector's routes: `POST /v1/events`, `GET /v1/status`, `/metrics` and `/health`."""
    app = FastAPI(title=f"Headrace collector: {spec.line}", docs_url=None, redoc_url=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_api_route("/v1/events", events.__call__, methods=["POST"])

    @app.get("/v1/status")
    def status(request: Request) -> dict[str, object]:
        events.door.look(request.headers.get("authorization"))
        done = head_tick(home)
        newest = read_tick(home, done - 1) if done else None
        return {
            "line": spec.line,
            "head": writer.head,
            "last_arrival_us": writer.last_us,
            "malformed": events.side.count,
            "ticks": done,
            "events_to": newest.events[1] if newest else 0,
            "at_us": newest.at_us if newest else None,
        }

    @app.get("/metrics")
    def page(request: Request) -> Response:
        events.door.look(request.headers.get("authorization"))
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "line": spec.line}

    return app


def gauges(
    admission: Admission, writer: EventWriter, home: Path
) -> dict[str, tuple[str, Callable[[], float]]]:
    """What a collector is asked whenever its metrics are: name to help text and question."""

    def seconds_behind() -> float:
        start = writer.head - admission.behind()
        oldest = writer.read(start, start + 1)["arrival_at"].cast("int64").to_pylist()
        return max(clock_us() - oldest[0], 0) / 1e6 if oldest else 0.0

    def lag() -> float:
        try:
            return writer.lag()
        except EnvironmentFault:  # appends say it aloud
            return math.nan

    return {
        "queue_rows": ("Events that wait for their append.", lambda: admission.rows),
        "queue_bytes": ("Bytes of bodies in memory.", lambda: admission.bytes),
        "log_head": ("Events ever stored, the next one's offset.", lambda: writer.head),
        "log_lag": ("Messages of the log in Kafka that its copy lacks; NaN: no answer.", lag),
        "log_segments": ("Files that hold the event log.", lambda: writer.segments),
        "events_behind": ("Stored events that no tick has read.", admission.behind),
        "seconds_behind": ("Age of the oldest event that no tick has read.", seconds_behind),
        "disk_free_bytes": ("Free space for the line's files.", lambda: free_bytes(home)),
    }


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as problem:
        listener.close()
        raise EnvironmentFault(
            f"{host}:{port}: {problem.strerror}; stop what uses it or set HEADRACE_COLLECTOR_PORT"
        ) from problem
    return listener
