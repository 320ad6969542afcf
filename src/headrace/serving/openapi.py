"""The parts of the OpenAPI document that FastAPI cannot see: bodies that a route reads itself."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from headrace.serving.payload import VERSION_HEADER

BEARER: Final = "bearer"
_SCHEMAS: Final = "#/components/schemas/"


def body(name: str, *, binary: bool = False) -> dict[str, Any]:
    """A required body in JSON of a model of that name, or with binary tensors behind it."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{name}"}}}
    if binary:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def guarded() -> dict[str, Any]:
    """Where the server has a token for it, the operation asks for one."""
    return {"security": [{}, {BEARER: []}]}


def pin_header() -> dict[str, Any]:
    """The optional header that names the version that is to answer."""
    return {
        "parameters": [
            {
                "name": VERSION_HEADER,
                "in": "header",
                "required": False,
                "description": "A version to answer in place of the champion, for debugging.",
                "schema": {"type": "string", "pattern": r"^v\d{6,12}$"},
            }
        ]
    }


def describe(app: FastAPI, *models: type[BaseModel]) -> None:
    """Add the schemas of models to the app's document, which is made when it is first asked for."""
    make = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = make()
            _, schemas = models_json_schema(
                [(model, "validation") for model in models], ref_template=f"{_SCHEMAS}{{model}}"
            )
            found["components"]["schemas"] |= schemas["$defs"]
            found["components"]["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
