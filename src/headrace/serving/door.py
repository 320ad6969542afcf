"""The first thing a request over HTTP meets: access, the count of what came, headers of safety.

It answers 401, 403 and 429 before a body is read. Pages of other sites are told apart by what
browsers say of them (https://www.w3.org/TR/fetch-metadata/): a page that somebody opens must not
score through his browser on a server that listens on loopback only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.serving.access import Access, Reason, TurnedAway
from headrace.serving.metrics import ServingMetrics, outcome_of
from headrace.serving.payload import VERSION_HEADER

INSIDE: Final = frozenset(("/v1/status", "/v1/race", "/metrics"))
_STATUS: Final[dict[Reason, int]] = {"unknown": 401, "forbidden": 403, "limited": 429}
_VERSION: Final = VERSION_HEADER.encode()
RawHeader = tuple[bytes, bytes]
_CSP: Final = b"content-security-policy"
_HEADERS: Final[tuple[RawHeader, ...]] = (
    (_CSP, b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_OF_DOCS: Final[tuple[RawHeader, ...]] = (
    (
        _CSP,
        b"default-src 'none'; connect-src 'self'; img-src data: https://fastapi.tiangolo.com; "
        b"script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' "
        b"https://cdn.jsdelivr.net; frame-ancestors 'none'",
    ),
    *_HEADERS[1:],
)


class Door:
    """ASGI middleware around all others. Every POST is a scoring request: there is no other."""

    def __init__(self, app: ASGIApp, access: Access, metrics: ServingMetrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _protected(scope["path"], message["headers"])
            await send(message)

        try:
            await self._let_in(scope, receive, answer)
        except BaseException:
            status = 500
            raise
        finally:
            if scope["method"] == "POST":
                took_s = time.perf_counter() - began
                self._metrics.ended("http", outcome_of(status), took_s)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(reversed(scope["headers"]))  # of those with one name the first counts
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        try:
            if scope["method"] == "POST":
                if headers.get(b"sec-fetch-site") == b"cross-site":
                    raise TurnedAway("forbidden", "a page of another site may not score here")
                pinned = _VERSION in headers or "/versions/" in scope["path"]
                self._access.score(authorization, pinned=pinned)
            elif scope["path"] in INSIDE:
                self._access.look(authorization)
        except TurnedAway as refusal:
            await _answer(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _answer(refusal: TurnedAway) -> JSONResponse:
    headers = {}
    if refusal.reason == "unknown":
        headers["www-authenticate"] = 'Bearer realm="headrace"'
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    return JSONResponse({"error": refusal.detail}, _STATUS[refusal.reason], headers)


def _protected(path: str, headers: Iterable[RawHeader]) -> list[RawHeader]:
    """An answer's headers (names in lower case) with those of safety that it does not set."""
    docs = path.startswith("/docs")
    given = [header for header in headers if not (docs and header[0] == _CSP)]
    names = {name for name, _ in given}
    return given + [header for header in (_OF_DOCS if docs else _HEADERS) if header[0] not in names]
