"""The straight way of a scoring request to the function of its route.

FastAPI's own way, through its middleware, a router that tries route after route and stacks of
contexts for dependencies that there are not, takes 0.1 to 0.3 ms of a request's CPU
(docs/adr/0079). FastAPI describes these routes all the same, and would answer them alike: by the
same functions, and `refusal`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.serving.refusal import PROBLEMS, refusal


class Desk:
    """ASGI middleware: answers a POST to a route of which all path parameters are `known`.

    Everything else goes on to `app`. The functions of such routes take the request and the path's
    parameters, no more.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], known: Mapping[str, str]) -> None:
        self._app = app
        self._functions: dict[str, Callable[[Request], Awaitable[Response]]] = {}
        for route in routes:
            if not isinstance(route, APIRoute) or route.methods != {"POST"}:
                continue
            if route.param_convertors.keys() <= known.keys():
                given = {name: known[name] for name in route.param_convertors}
                path = route.path_format.format(**given)
                self._functions[path] = partial(route.endpoint, **given)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        function = self._functions.get(scope["path"]) if post else None
        if function is None:
            await self._app(scope, receive, send)
            return
        try:
            answer = await function(Request(scope, receive))
        except PROBLEMS as problem:
            answer = refusal(problem.with_traceback(None))
        await answer(scope, receive, send)
