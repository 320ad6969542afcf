"""Limits on request bodies, size and time, before anything parses them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LimitBody:
    """ASGI middleware: a body over `max_bytes` is answered 413, declared or streamed.

    One that takes longer than `max_s` to come is answered 408; who hangs up gets no answer. What is
    within the limits is handed on as one message.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_s = max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._too_large(scope, receive, send)
            return
        try:
            body = await self._in_time(receive)
        except TimeoutError:
            problem = {"error": f"the body took longer than {self._max_s:g} s; send less at once"}
            await JSONResponse(problem, 408, {"connection": "close"})(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > self._max_bytes:
            await self._too_large(scope, receive, send)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    async def _in_time(self, receive: Receive) -> bytes | None:
        """What `_whole` returns. Raises `TimeoutError`.

        Most bodies come with their head, and a timer costs more than to look at them: it is set
        once there is something to wait for.
        """
        whole = self._whole(receive)
        try:
            waits_for = whole.send(None)
        except StopIteration as there:
            body: bytes | None = there.value
            return body
        async with asyncio.timeout(self._max_s):
            return await _rest(whole, waits_for)

    async def _whole(self, receive: Receive) -> bytes | None:
        """The body, or more than `max_bytes` of it; None where the sender hung up."""
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = {"error": f"body exceeds {self._max_bytes} bytes; send fewer candidates"}
        await JSONResponse(problem, 413)(scope, receive, send)


@coroutine
def _rest(
    begun: Coroutine[Any, Any, bytes | None], waits_for: Any
) -> Generator[Any, Any, bytes | None]:
    """Go on with a coroutine that has begun, and yielded what it waits for."""
    try:
        yield waits_for
    except BaseException as stop:  # what it would have been told where it waits
        begun.throw(stop)
        raise
    return (yield from begun.__await__())
