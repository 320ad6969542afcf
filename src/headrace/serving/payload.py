"""What `/v1/score` accepts and answers: bodies checked against the line, with field paths.

The request is a pydantic model made from the line's columns, so the OpenAPI document names them.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    create_model,
    with_config,
)
from typing_extensions import TypedDict

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.raw import Candidates
from headrace.serving.scored import Scored

MAX_CANDIDATES: Final = 512
MAX_BODY_BYTES: Final = 1 << 20
MAX_TEXT: Final = 4096
LARGEST: Final = sys.float_info.max  # JSON integers have no bound
VERSION_HEADER: Final = "x-headrace-version"


class WrongField(InputError):
    """A part of a request that does not fit; `path` leads to it from `body`."""

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        self.path = ("body", *path)
        self.message = message
        super().__init__(f"{'.'.join(map(str, self.path))}: {message}")


class UnknownModel(InputError):
    """A request for a line that this server does not serve."""


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can escape half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# the JSON parser refuses half a surrogate pair, which is no text
RequestId = Annotated[StrictStr, Field(min_length=1, max_length=128)]
_VALUES: Final[dict[str, Any]] = {
    "string": Annotated[StrictStr, Field(max_length=MAX_TEXT)],
    "int": Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)],
    "float": Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)],
}


class Strict(BaseModel):
    """A request body or a part of one: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Score(BaseModel):
    """A candidate's score; `impression_id` is to be sent back with its impression.

    `score` is the probability of a click. Lines with conversions also tell that of a conversion
    given a click, and their product.
    """

    impression_id: str
    score: float
    conversion_score: float | None = None
    click_and_conversion_score: float | None = None


class ScoreResponse(BaseModel):
    """Scores in the order of the candidates. `staleness_s` = now − `watermark`.

    `arm`: `champion`, or `pinned` where the request asked for a version: such answers are for
    debugging, and what they lead to is not learned. `fallback`: `none`, or who stood in, separated
    by commas: `defaults` for features that could not be read, `previous` (an earlier version) or
    `prior` (a constant, no model: `version` is `prior` too) for a model that could not answer.
    """

    request_id: str
    version: str
    arm: str
    fallback: str
    watermark: str | None
    staleness_s: float | None
    scores: list[Score]


class Problem(BaseModel):
    """Why a request was not served."""

    error: str


class FieldProblem(BaseModel):
    """What is wrong with one part of a request; `loc` is its path."""

    type: str
    loc: list[str | int]
    msg: str


class Refusal(Problem):
    """A request that is wrong, and each part that is."""

    detail: list[FieldProblem] = []


def score_request(spec: LineSpec) -> type[BaseModel]:
    """The body of `/v1/score` for a line: `context` is shared by all `candidates`."""
    name = spec.line.title().replace("_", "")
    fields = {column: _VALUES[kind] | None for column, kind in spec.columns.items()}
    # a dictionary, not a model: fifty candidates cost a fifth less
    row = with_config(Strict.model_config)(TypedDict(f"{name}Row", fields, total=False))  # type: ignore[operator]
    return create_model(
        f"{name}Request",
        __base__=Strict,
        request_id=(RequestId | None, None),
        context=(row, Field(default_factory=dict)),
        candidates=(list[row], Field(min_length=1, max_length=MAX_CANDIDATES)),  # type: ignore[valid-type]
    )


def candidates_of(spec: LineSpec, body: Any) -> Candidates:
    """The declared columns; what a candidate says goes before the context."""
    rows, shared = body.candidates, body.context
    columns = {
        name: [row.get(name, all_) for row in rows]
        for name, all_ in ((name, shared.get(name)) for name in spec.columns)
    }
    return Candidates(columns, len(rows))


def score_answer(scored: Scored) -> dict[str, Any]:
    """The content of a `ScoreResponse`."""
    columns = {"impression_id": scored.impression_ids, "score": scored.scores.tolist()}
    columns |= {f"{task}_score": scores.tolist() for task, scores in scored.tasks.items()}
    return {
        "request_id": scored.request_id,
        "version": scored.version,
        "arm": scored.arm,
        "fallback": scored.fallback,
        "watermark": None if scored.watermark_us is None else iso(scored.watermark_us),
        "staleness_s": scored.staleness_s,
        "scores": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ],
    }


@lru_cache(maxsize=16)  # all answers of a version tell the same watermark
def iso(time_us: int) -> str:
    """A moment as people and JSON read it, in UTC."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds")
