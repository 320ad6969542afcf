"""A straight way to the scoring routes, past FastAPI's: the CPU of a request is mostly its layers.

A route of FastAPI costs a request as much as parsing and answering it: middleware, all routes tried
in turn, stacks of contexts for dependencies that there are not (docs/adr/0079). FastAPI still
describes these routes, and would answer the same: it has the same functions and problems.
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
    """ASGI middleware: a POST to a path that `routes` and what is `known` of their parameters fix.

    The functions of these routes take nothing but the request and those parameters.
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
