"""The routes that show a server from inside: the page at `/`, `/v1/status` and `/metrics`."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from headrace.serving.openapi import guarded
from headrace.serving.overview import Status
from headrace.serving.policy import content_policy
from headrace.serving.routes import LOCKED

_FIGURES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


def inside_routes() -> APIRouter:
    """`/`, `/v1/status`, `/metrics`."""
    router = APIRouter(tags=["look inside"])
    page = files("headrace.serving").joinpath("page.html").read_text(encoding="utf-8")
    policy = {"content-security-policy": content_policy(page)}

    @router.get("/", include_in_schema=False)
    async def shown() -> HTMLResponse:
        """The page; it holds nothing of the line and asks `/v1/status` each second."""
        return HTMLResponse(page, headers=policy)

    @router.get("/v1/status", responses=LOCKED, openapi_extra=guarded())
    async def status(request: Request) -> Status:
        """Champion and staleness, requests and their times, gates, the race, the served log."""
        found: Status = await request.app.state.overview.status()
        return found

    @router.get(
        "/metrics",
        response_class=Response,
        responses=_FIGURES | LOCKED,
        openapi_extra=guarded(),
    )
    async def metrics(request: Request) -> Response:
        """The figures of this server for Prometheus."""
        return Response(request.app.state.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return router
