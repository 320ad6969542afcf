"""What is answered where a request cannot be: the status and the words of each problem."""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from headrace.errors import HeadraceError, InputError
from headrace.serving.payload import UnknownModel, WrongField

PROBLEMS: Final = (HeadraceError, ValidationError, HTTPException)


def refusal(problem: Exception) -> Response:
    """The answer to a request that raised one of `PROBLEMS`."""
    if isinstance(problem, WrongField):
        return _explain([{"type": "value_error", "loc": problem.path, "msg": problem.message}])
    if isinstance(problem, ValidationError):
        told = problem.errors(include_url=False, include_context=False, include_input=False)
        return _explain([{**error, "loc": ("body", *error["loc"])} for error in told])
    if isinstance(problem, HTTPException):  # a path or a method that there is not
        return JSONResponse({"error": problem.detail}, problem.status_code, problem.headers)
    if isinstance(problem, UnknownModel):
        status = 404
    else:
        status = 422 if isinstance(problem, InputError) else 503
    return JSONResponse({"error": str(problem)}, status)


def refuse(app: FastAPI) -> None:
    """Have FastAPI answer what its routes raise by `refusal`."""

    async def told(_: Request, problem: Exception) -> Response:
        return refusal(problem)

    for kind in PROBLEMS:
        app.add_exception_handler(kind, told)


def _explain(found: list[dict[str, Any]]) -> Response:
    """What is wrong where, without the echo of the input, which may be large or no JSON (NaN)."""
    first = f"{'.'.join(map(str, found[0]['loc']))}: {found[0]['msg']}"
    # ASCII with escapes: a field's name may hold half a surrogate pair
    content = json.dumps({"error": first, "detail": found})
    return Response(content, 422, media_type="application/json")
