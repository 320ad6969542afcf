"""The champion of a line: a log of generations that is only ever appended to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from headrace.errors import ConflictError, IntegrityError
from headrace.line.generations import Generations
from headrace.line.version import LEARN, Champion
from headrace.sealed import SealedFiles


class Champions:
    """Reads and appends `champion/<generation>.json`; see `headrace.line`."""

    def __init__(self, files: SealedFiles, line: str):
        self._generations = Generations(files, "champion")
        self._line = line

    def newest(self) -> Champion | None:
        """The newest champion; costs one look at the file system when nothing has changed."""
        newest = self._generations.newest()
        return self.read(newest) if newest else None

    def history(self) -> list[Champion]:
        """All champions, oldest first."""
        return list(self.backwards())[::-1]

    def backwards(self) -> Iterator[Champion]:
        """All champions, newest first, read as they are asked for."""
        newest = self.newest()
        generation = newest.generation if newest else 0
        while generation > 0:
            body = self._generations.read(generation)
            if body is not None:
                yield self._champion(generation, body)
                generation -= 1
                continue
            generation = self._generations.before(generation)  # a learner's are forgotten in time

    def forget(self, since: int, before_us: int, keep: int) -> int:
        """Remove what learners did before that moment, but the newest `keep` generations.

        Looks at generations from `since` on, up to the first that is too young; returns it.
        """
        newest = self.newest()
        for generation in range(since, (newest.generation if newest else 0) - keep + 1):
            body = self._generations.read(generation)
            if body is None:
                continue
            if body["at_us"] >= before_us:
                return generation
            if body["action"] == LEARN:
                self._generations.remove(generation)
        return max(since, (newest.generation if newest else 0) - keep + 1)

    def append(self, expected: Champion | None, version: str, action: str, reason: str) -> Champion:
        """Add the generation after `expected`. Raises `ConflictError` when there is one already."""
        if expected is not None and expected != self.read(expected.generation):
            raise ConflictError(
                f"line {self._line!r}: generation {expected.generation} is not "
                f"{expected.version!r} in this store; read champion() again"
            )
        new = Champion(
            generation=expected.generation + 1 if expected else 1,
            version=version,
            at_us=time.time_ns() // 1000,
            action=action,
            reason=reason,
            previous=expected.version if expected else None,
        )
        if self._generations.create(new.generation, asdict(new)):
            return new
        winner = self.read(new.generation)
        raise ConflictError(
            f"line {self._line!r}: {version!r} was to follow generation {new.generation - 1}, but "
            f"{winner.version!r} did ({winner.action}: {winner.reason}); start again from it"
        )

    def read(self, generation: int) -> Champion:
        """One generation. Raises `ConflictError` when there is none of that number."""
        body = self._generations.read(generation)
        if body is None:
            raise ConflictError(
                f"line {self._line!r} has no generation {generation}; read champion() again"
            )
        return self._champion(generation, body)

    def _champion(self, generation: int, body: dict[str, Any]) -> Champion:
        try:
            return Champion(**body)
        except TypeError as problem:
            raise IntegrityError(f"champion {generation} of {self._line!r}: {problem}") from None


def version_before(backwards: Iterator[Champion]) -> str | None:
    """What served before the present champion was last promoted, None when nothing else did.

    backwards: generations, newest first; no more of them are read than are needed.
    """
    seen = [next(backwards)]
    present = seen[0].version
    while seen[-1].version != present or seen[-1].action == "rollback":
        before = next(backwards, None)
        if before is None:  # it never was promoted, only rolled back to by name
            return next((c.version for c in seen if c.version != present), None)
        seen.append(before)
    return next((c.version for c in backwards if c.version != present), None)


def served_before(backwards: Iterator[Champion]) -> Iterator[Champion]:
    """The champions before the present one, newest first, each version once.

    Those that a rollback took back are passed over. backwards: generations, newest first, read as
    they are needed.
    """
    seen: set[str] = set()
    returned_to: str | None = None
    for champion in backwards:
        is_rollback = champion.action == "rollback"
        if returned_to is not None and (champion.version != returned_to or is_rollback):
            continue
        returned_to = champion.version if is_rollback else None
        if seen and champion.version not in seen:
            yield champion
        seen.add(champion.version)
