"""What the server accepts: request bodies checked against the line, with field paths.

The short form is a pydantic model made from the line's columns, so the OpenAPI document
names them. Open Inference Protocol tensors are checked here, because what a tensor may hold
follows from its name.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    create_model,
)

from headrace.declaration import LineSpec

MAX_CANDIDATES: Final = 512
MAX_BODY_BYTES: Final = 1 << 20
MAX_TEXT: Final = 4096
LARGEST: Final = sys.float_info.max  # JSON integers have no bound
DATATYPES: Final[dict[str, Literal["BYTES", "INT64", "FP64"]]] = {
    "string": "BYTES",
    "int": "INT64",
    "float": "FP64",
}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _utf8(text: str) -> str:
    if not _is_utf8(text):
        raise ValueError("holds half a surrogate pair, which is no text; send valid Unicode")
    return text


Text = Annotated[StrictStr, AfterValidator(_utf8)]  # JSON can escape what UTF-8 cannot hold
RequestId = Annotated[Text, Field(min_length=1, max_length=128)]
_VALUES: Final[dict[str, Any]] = {
    "string": Annotated[Text, Field(max_length=MAX_TEXT)],
    "int": Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)],
    "float": Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)],
}


class Strict(BaseModel):
    """A request body or a part of one: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Score(BaseModel):
    """A candidate's score; `impression_id` is to be sent back with its impression."""

    impression_id: str
    score: float


class ScoreResponse(BaseModel):
    """Scores in the order of the candidates. `staleness_s` = now − `watermark`."""

    request_id: str
    version: str
    watermark: str
    staleness_s: float
    scores: list[Score]


class Tensor(Strict):
    """A column of the request: `shape` is [n] and `data` holds n values or nulls."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "INT64", "FP64"]
    parameters: dict[str, Any] | None = None
    data: list[StrictStr | StrictInt | StrictFloat | None]


class InferRequest(BaseModel):
    """Open Inference Protocol v2 request; `id` becomes the request id."""

    model_config = ConfigDict(extra="ignore")  # `outputs` and `parameters` of the protocol

    id: RequestId | None = None
    inputs: list[Tensor] = Field(min_length=1)


class OutputTensor(BaseModel):
    """A column of the answer."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferResponse(BaseModel):
    """Open Inference Protocol v2 answer, with version, watermark and staleness as parameters."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, str | float]
    outputs: list[OutputTensor]


class Problem(BaseModel):
    """Why a request was not served."""

    error: str


def score_request(spec: LineSpec) -> type[BaseModel]:
    """The body of `/v1/score` for a line: `context` is shared by all `candidates`."""
    fields: dict[str, Any] = {
        name: (_VALUES[kind] | None, None) for name, kind in spec.columns.items()
    }
    row = create_model(f"{spec.line.title().replace('_', '')}Row", __base__=Strict, **fields)
    return create_model(
        f"{spec.line.title().replace('_', '')}Request",
        __base__=Strict,
        request_id=(RequestId | None, None),
        context=(row, Field(default_factory=row)),
        candidates=(list[row], Field(min_length=1, max_length=MAX_CANDIDATES)),
    )


def rows_of_score(body: Any) -> list[dict[str, object]]:
    """One row for each candidate; what a candidate says goes before the context."""
    context = body.context.model_dump(exclude_unset=True)
    return [context | row.model_dump(exclude_unset=True) for row in body.candidates]


def rows_of_tensors(spec: LineSpec, body: InferRequest) -> list[dict[str, object]]:
    """One row for each position of the tensors. Raises `RequestValidationError` with paths."""
    size = len(body.inputs[0].data)
    if not 1 <= size <= MAX_CANDIDATES:
        raise _wrong(0, "data", f"holds {size} values; send 1 to {MAX_CANDIDATES} candidates")
    columns: dict[str, list[Any]] = {}
    for i, tensor in enumerate(body.inputs):
        kind = spec.columns.get(tensor.name)
        if kind is None:
            known = ", ".join(spec.columns)
            raise _wrong(i, "name", f"{tensor.name!a} is no column of {spec.line}; known: {known}")
        if tensor.name in columns:
            raise _wrong(i, "name", f"{tensor.name!r} is sent twice; remove one")
        if tensor.datatype != DATATYPES[kind]:
            raise _wrong(i, "datatype", f"{tensor.name!r} is {DATATYPES[kind]}")
        if tensor.shape not in ([size], [size, 1]) or len(tensor.data) != size:
            raise _wrong(
                i,
                "shape",
                f"{tensor.shape} with {len(tensor.data)} values; every tensor is [{size}] here",
            )
        for j, value in enumerate(tensor.data):
            if not _fits(kind, value):
                raise _wrong(i, f"data.{j}", f"{ascii(value)[:80]} is not {DATATYPES[kind]}")
        columns[tensor.name] = tensor.data
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _fits(kind: str, value: object) -> bool:
    if value is None:
        return True
    if kind == "string":
        return isinstance(value, str) and len(value) <= MAX_TEXT and _is_utf8(value)
    if kind == "int":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return isinstance(value, int | float) and -LARGEST <= value <= LARGEST


def _wrong(index: int, field: str, message: str) -> RequestValidationError:
    location = ("body", "inputs", index, *field.split("."))
    return RequestValidationError([{"type": "value_error", "loc": location, "msg": message}])
