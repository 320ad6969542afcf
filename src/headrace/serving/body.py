"""Limits on request bodies, size and time, before anything parses them."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LimitBody:
    """ASGI middleware: a body over `max_bytes` is answered 413, declared or streamed.

    One that takes longer than `max_s` to come is answered 408; who hangs up gets no answer.
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
            async with asyncio.timeout(self._max_s):
                messages = await self._all(receive)
        except TimeoutError:
            problem = {"error": f"the body took longer than {self._max_s:g} s; send less at once"}
            await JSONResponse(problem, 408, {"connection": "close"})(scope, receive, send)
            return
        if messages is None:
            await self._too_large(scope, receive, send)
            return
        if messages[-1]["type"] == "http.disconnect":
            return
        waiting = iter(messages)

        async def replay() -> Message:
            held = next(waiting, None)
            return held if held is not None else await receive()

        await self._app(scope, replay, send)

    async def _all(self, receive: Receive) -> list[Message] | None:
        """The body's messages, or None once they hold too many bytes."""
        messages: list[Message] = []
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if size > self._max_bytes:
                return None
        return messages

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = {"error": f"body exceeds {self._max_bytes} bytes; send fewer candidates"}
        await JSONResponse(problem, 413)(scope, receive, send)
