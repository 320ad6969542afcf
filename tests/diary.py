"""Work begun and done, written down by processes that may be killed at any moment.

What a killed process wrote is there: each line is one write to the end of a file, and the clock is
the machine's own, which does not start anew with a process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self


class Diary:
    """What the process at hand does, unit by unit; one process at a time writes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def begins(self, unit: int) -> None:
        self._write("begins", unit)

    def done(self, unit: int) -> None:
        self._write("done", unit)

    def _write(self, what: str, unit: int) -> None:
        os.write(self._file, f"{time.monotonic()} {what} {unit}\n".encode())


class Work(NamedTuple):
    """What faults cost: seconds from one to the next unit done, and units done again."""

    recovered_s: list[float]
    repeated: list[int]

    @classmethod
    def between(cls, path: Path, faults: Sequence[float]) -> Self:
        """Read a diary over the moments of `faults`, by the machine's monotonic clock."""
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        entries = [(float(at), what, int(unit)) for at, what, unit in lines]
        recovered, repeated = [], []
        for fault, following in pairwise([*faults, float("inf")]):
            known = {unit for at, what, unit in entries if at < fault}
            after = [one for one in entries if fault <= one[0] < following]
            again = {unit for _, what, unit in after if what == "begins"} & known
            repeated.append(len(again))
            done = [at for at, what, _ in after if what == "done"]
            recovered += [done[0] - fault] if done else []
        return cls(recovered, repeated)

    @classmethod
    def of(cls, each: Iterable[Work]) -> Self:
        """All of several runs."""
        every = list(each)
        return cls(
            [took for one in every for took in one.recovered_s],
            [count for one in every for count in one.repeated],
        )
