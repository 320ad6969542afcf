"""What is written down about a version and about a move of the champion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NotRequired, TypedDict

Publisher = Literal["cycle", "learner"]
CYCLE: Final[Publisher] = "cycle"
LEARN: Final = "learn"
"""`Champion.action` of a learner's step."""


class About(TypedDict):
    """What a publisher says about a state; the fields of `Version` by the same names."""

    from_tick: int
    to_tick: int
    excluded: list[list[int]]
    watermark_us: int
    event_at_us: int
    feature_service: str
    code: str
    rows: int
    metrics: dict[str, float]
    publisher: NotRequired[Publisher]


@dataclass(frozen=True)
class Version:
    """One published model of a line; see DESIGN rule 6.

    Ticks [from_tick, to_tick) were learned since the parent, without the `excluded` tick
    intervals [from, to). `watermark_us`, `event_at_us`: arrival and event time of the newest
    event learned. `kind`: base or delta. `files`: SHA-256 of the stored bytes by name, `size`
    of them in bytes. `fingerprint`: of the whole state, however stored (see `fingerprint`).
    `chain_deltas`, `chain_bytes`: deltas to apply after the base when it was published, and
    their size; 0 for a base. `publisher`: a cycle, one of some hundred a day, or the learner,
    one of thousands.
    """

    version: str
    line: str
    parent: str | None
    kind: str
    created_at: str
    from_tick: int
    to_tick: int
    excluded: list[list[int]]
    watermark_us: int
    event_at_us: int
    feature_service: str
    code: str
    rows: int
    metrics: dict[str, float]
    files: dict[str, str]
    size: int
    fingerprint: str
    chain_deltas: int
    chain_bytes: int
    publisher: Publisher = CYCLE

    def rates(self, *, conversion: bool) -> dict[str, float]:
        """The rates of the rows that it learned, by task as a model predicts them.

        What someone would answer who knew nothing else. Raises `KeyError` where they were not told.
        """
        click = self.metrics["label_rate"]
        if not conversion:
            return {"click": click}
        both = self.metrics["click_and_conversion_rate"]
        after = both / click if click else 0.0
        return {"click": click, "conversion": after, "click_and_conversion": both}

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is stored; the usual publisher goes without saying."""
        body = asdict(self)
        if self.publisher == CYCLE:
            del body["publisher"]
        return body


@dataclass(frozen=True)
class Stored:
    """A stored file of a version, `path` below the line's root: the whole state, or a delta."""

    path: str
    sha256: str
    whole: bool


@dataclass(frozen=True)
class Champion:
    """The version that serves since `at_us`. `action`: why it moved, such as promote, rollback."""

    generation: int
    version: str
    at_us: int
    action: str
    reason: str
    previous: str | None
