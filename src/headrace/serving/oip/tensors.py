"""Tensors of the protocol and columns of Arrow, whatever carries them.

Binary contents are those of the standard: little-endian integers and floats end to end, each text
as its length (4 bytes, little-endian) and its UTF-8 bytes. JSON can say null; binary contents can
say NaN, which is a missing float; a column that is not sent is missing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from headrace.declaration import LineSpec
from headrace.events import task_scores
from headrace.raw import Candidates
from headrace.serving.payload import (
    LARGEST,
    MAX_CANDIDATES,
    MAX_TEXT,
    WrongField,
    is_utf8,
    iso,
)
from headrace.serving.scored import Scored

Datatype = Literal["BYTES", "INT64", "FP64"]
DATATYPES: Final[dict[str, Datatype]] = {"string": "BYTES", "int": "INT64", "float": "FP64"}
_NUMBERS: Final = {"INT64": "<i8", "FP64": "<f8"}


@dataclass(frozen=True)
class Input:
    """A tensor as it came: `data` is a sequence of values, or the bytes of a binary tensor."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Sequence[Any] | bytes


@dataclass(frozen=True)
class Output:
    """A tensor of an answer, of shape [n]."""

    name: str
    datatype: Datatype
    data: list[Any]

    def binary(self) -> bytes:
        """The contents as the standard's bytes."""
        if self.datatype == "BYTES":
            texts = [text.encode() for text in self.data]
            return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
        return np.asarray(self.data, _NUMBERS[self.datatype]).tobytes()


def output_types(spec: LineSpec) -> dict[str, Datatype]:
    """The outputs of a line and their datatypes, in order."""
    scores: dict[str, Datatype] = dict.fromkeys(("score", *task_scores(spec)), "FP64")
    return {**scores, "impression_id": "BYTES"}


def check_outputs(spec: LineSpec, names: Sequence[str]) -> None:
    """Raise `WrongField` for an output that the line does not have."""
    known = output_types(spec)
    for i, name in enumerate(names):
        if name not in known:
            raise WrongField(("outputs", i, "name"), f"{name[:80]!a}; known: {', '.join(known)}")


def parameters_of(scored: Scored) -> dict[str, str | float]:
    """What an answer says beside its tensors."""
    said: dict[str, str | float] = {
        "version": scored.version,
        "arm": scored.arm,
        "fallback": scored.fallback,
        "request_id": scored.request_id,
    }
    if scored.watermark_us is not None and scored.staleness_s is not None:
        said |= {"watermark": iso(scored.watermark_us), "staleness_s": scored.staleness_s}
    return said


def outputs_of(scored: Scored) -> list[Output]:
    """The tensors of an answer."""
    return [
        Output("score", "FP64", scored.scores.tolist()),
        *(Output(f"{task}_score", "FP64", each.tolist()) for task, each in scored.tasks.items()),
        Output("impression_id", "BYTES", scored.impression_ids),
    ]


def candidates_of(spec: LineSpec, inputs: Sequence[Input]) -> Candidates:
    """The declared columns, one row for each position of the tensors.

    Raises `WrongField` with the path of what does not fit.
    """
    size = inputs[0].shape[0] if inputs and inputs[0].shape else 0
    if not 1 <= size <= MAX_CANDIDATES:
        raise _wrong(0, "shape", f"holds {size} values; send 1 to {MAX_CANDIDATES} candidates")
    columns: dict[str, list[Any]] = {}
    for i, tensor in enumerate(inputs):
        kind = spec.columns.get(tensor.name)
        if kind is None:
            known = ", ".join(spec.columns)
            raise _wrong(i, "name", f"{tensor.name!a} is no column of {spec.line}; known: {known}")
        if tensor.name in columns:
            raise _wrong(i, "name", f"{tensor.name!r} is sent twice; remove one")
        if tensor.datatype != DATATYPES[kind]:
            raise _wrong(i, "datatype", f"{tensor.name!r} is {DATATYPES[kind]}")
        if list(tensor.shape) not in ([size], [size, 1]):
            raise _wrong(i, "shape", f"{list(tensor.shape)}; every tensor is [{size}] here")
        values = _decoded(i, tensor, size) if isinstance(tensor.data, bytes) else tensor.data
        columns[tensor.name] = _column(i, kind, values, size)
    missing = [None] * size
    return Candidates({name: columns.get(name, missing) for name in spec.columns}, size)


def _column(i: int, kind: str, values: Any, size: int) -> list[Any]:
    if len(values) != size:
        field = "shape" if len(values) else "data"
        raise _wrong(i, field, f"{size} values are announced and {len(values)} are sent")
    if isinstance(values, np.ndarray):
        infinite = np.flatnonzero(np.isinf(values)) if kind == "float" else values[:0]
        if infinite.size:
            raise _wrong(i, f"data.{infinite[0]}", "is infinite; send a finite number or NaN")
        numbers: list[Any] = values.tolist()
        return [None if math.isnan(number) else number for number in numbers]
    for j, value in enumerate(values):
        if not _fits(kind, value):
            raise _wrong(i, f"data.{j}", f"{ascii(value)[:80]} is not {DATATYPES[kind]}")
    return [float(v) if v is not None else v for v in values] if kind == "float" else list(values)


def _decoded(i: int, tensor: Input, size: int) -> Any:
    """Values of a binary tensor: an array of numbers, or texts."""
    assert isinstance(tensor.data, bytes)
    if tensor.datatype == "BYTES":
        return _texts(i, tensor.data)
    if len(tensor.data) != 8 * size:
        raise _wrong(i, "data", f"holds {len(tensor.data)} bytes; {size} values take {8 * size}")
    return np.frombuffer(tensor.data, _NUMBERS[tensor.datatype])


def _texts(i: int, raw: bytes) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(raw):
        start = at + 4
        at = start + (struct.unpack_from("<I", raw, at)[0] if start <= len(raw) else len(raw))
        if at > len(raw):
            raise _wrong(i, f"data.{len(texts)}", "ends before the length that it announces")
        try:
            texts.append(raw[start:at].decode())
        except UnicodeDecodeError:
            raise _wrong(i, f"data.{len(texts)}", "is not UTF-8; send text") from None
    return texts


def _fits(kind: str, value: object) -> bool:
    if value is None:
        return True
    if kind == "string":
        return isinstance(value, str) and len(value) <= MAX_TEXT and is_utf8(value)
    if isinstance(value, bool):
        return False
    if kind == "int":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return isinstance(value, int | float) and -LARGEST <= value <= LARGEST


def _wrong(index: int, field: str, message: str) -> WrongField:
    path = (int(part) if part.isdigit() else part for part in field.split("."))
    return WrongField(("inputs", index, *path), message)
