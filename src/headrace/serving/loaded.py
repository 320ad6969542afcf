"""What a follower holds, what it asks of a line for it, and what it tells of how it came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from headrace.line import Champion, Version
from headrace.model import Model, State


@dataclass(frozen=True)
class Loaded:
    """A model in memory with the version and the pointer move that brought it."""

    version: Version
    champion: Champion
    model: Model


@dataclass(frozen=True)
class Delivery:
    """How champions came into memory since the start.

    `swaps`: how often what serves changed. `deltas` applied, `bases` loaded, `from_memory`: the
    waiting model held the champion already; `refused` deltas, the reason of the newest in
    `last_refused`.
    """

    swaps: int = 0
    deltas: int = 0
    bases: int = 0
    from_memory: int = 0
    refused: int = 0
    last_refused: str | None = None


class Lines(Protocol):
    """What a follower asks of a line: where it stands, and how to get there (`LineStore`)."""

    def champion(self) -> Champion | None: ...

    def earlier(self) -> Iterator[Champion]: ...

    def load(self, version: str) -> tuple[Version, State]: ...

    def path(self, since: str, to: str) -> list[Version] | None: ...

    def delta(self, version: Version) -> State: ...
