"""The protocol's bodies: JSON, and JSON followed by the bytes of binary tensors.

A binary tensor has no `data` but `parameters.binary_data_size`; the header
`Inference-Header-Content-Length` says where JSON ends and the tensors begin, in the order of the
inputs. Outputs are binary where the request asks for it, all by `parameters.binary_data_output`
or one by its own `parameters.binary_data`.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr
from pydantic_core import to_json

from headrace.declaration import LineSpec
from headrace.serving.oip.tensors import (
    Input,
    check_outputs,
    output_types,
    outputs_of,
    parameters_of,
)
from headrace.serving.payload import RequestId, Strict, WrongField
from headrace.serving.scored import Scored

JSON_LENGTH: Final = "inference-header-content-length"


class Tensor(Strict):
    """A column of the request, of shape [n]; `data` holds n values or nulls unless it is binary."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[StrictStr | StrictInt | StrictFloat | None] | None = None


class RequestedOutput(BaseModel):
    """An output that the request wants; without any it gets all."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """Open Inference Protocol v2 request; `id` becomes the request id."""

    model_config = ConfigDict(extra="ignore")

    id: RequestId | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[Tensor] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = None


class OutputTensor(BaseModel):
    """A column of the answer; a binary one has `parameters.binary_data_size` in place of `data`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """Open Inference Protocol v2 answer; version, arm, fallback and age are parameters."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, str | float]
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """Name, datatype and shape of an input or output; -1 is any number of candidates."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What the line takes and gives, and its versions that can be asked for by path."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    delivery: dict[str, Any] | None = None


def read_request(raw: bytes, json_length: str | None) -> tuple[InferRequest, list[Input]]:
    """Parse a body. Raises pydantic's `ValidationError` or `WrongField`, both with paths."""
    size = len(raw)
    if json_length is not None:
        if not json_length.isdecimal() or not 0 < int(json_length) <= size:
            raise WrongField((), f"header {JSON_LENGTH} does not fit a body of {size} bytes")
        size = int(json_length)
    request = InferRequest.model_validate_json(raw[:size])
    inputs, at = [], size
    for i, tensor in enumerate(request.inputs):
        length = (tensor.parameters or {}).get("binary_data_size")
        data: Any = tensor.data
        if length is None and data is None:
            raise WrongField(("inputs", i, "data"), "is missing, and so is binary_data_size")
        if length is not None:
            if type(length) is not int or not 0 <= length <= len(raw) - at or data is not None:
                raise WrongField(
                    ("inputs", i, "parameters", "binary_data_size"),
                    f"does not fit the {len(raw) - at} bytes behind the JSON, or data is sent too",
                )
            data, at = raw[at : at + length], at + length
        inputs.append(Input(tensor.name, tensor.datatype, tensor.shape, data))
    if at != len(raw):
        raise WrongField((), f"{len(raw) - at} bytes behind the tensors belong to none of them")
    return request, inputs


def wanted_outputs(spec: LineSpec, request: InferRequest) -> dict[str, bool]:
    """The outputs that the request wants, in its order, and whether each is to be binary."""
    every = (request.parameters or {}).get("binary_data_output") is True
    known = output_types(spec)
    if not request.outputs:
        return dict.fromkeys(known, every)
    check_outputs(spec, [one.name for one in request.outputs])
    return {
        one.name: (one.parameters or {}).get("binary_data", every) is True
        for one in request.outputs
    }


def write_answer(
    spec: LineSpec, scored: Scored, wanted: dict[str, bool]
) -> tuple[bytes, dict[str, str]]:
    """The body of an `InferResponse` and its headers."""
    tensors, parts = [], []
    by_name = {output.name: output for output in outputs_of(scored)}
    for name, binary in wanted.items():
        output = by_name[name]
        told: dict[str, Any] = {
            "name": name,
            "datatype": output.datatype,
            "shape": [len(output.data)],
        }
        if binary:
            parts.append(output.binary())
            told["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            told["data"] = output.data
        tensors.append(told)
    answer = {
        "model_name": spec.line,
        "model_version": scored.version,
        "id": scored.request_id,
        "parameters": parameters_of(scored),
        "outputs": tensors,
    }
    body: bytes = to_json(answer)
    if not parts:
        return body, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(body))}
    return b"".join([body, *parts]), headers
