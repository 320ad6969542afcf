"""What stands in for a model where there is none: the rates of the rows that the champion learned.

They say nothing about a candidate, but are right on average, so that what is computed from scores
(a bid, a budget) stays in its range.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from headrace.declaration import LineSpec
from headrace.errors import HeadraceError
from headrace.line import LineStore

LOG = logging.getLogger(__name__)
MOST_TRIED: Final = 5
KEEP_S: Final = 5.0


@dataclass(frozen=True)
class Rates:
    """Probabilities by task, and the watermark of the version that saw them (None: declared)."""

    tasks: dict[str, float]
    watermark_us: int | None


class Prior:
    """The rates of the champion, else of one before it, else the declared constant."""

    def __init__(
        self, spec: LineSpec, lines: LineStore, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._spec = spec
        self._lines = lines
        self._clock_s = clock_s
        self._held: Rates | None = None
        self._until_s = float("-inf")
        self._turn = threading.Lock()

    def rates(self) -> Rates | None:
        """The rates now; None where the line never had a champion and declares no constant.

        Who asks while another thread looks them up gets those of before.
        """
        if self._clock_s() >= self._until_s and self._turn.acquire(blocking=False):
            try:
                self._held = self._learned() or self._held or self._declared()
                self._until_s = self._clock_s() + KEEP_S
            finally:
                self._turn.release()
        return self._held

    def _learned(self) -> Rates | None:
        try:
            for version in islice(self._known(), MOST_TRIED):
                rates = self._of(version)
                if rates is not None:
                    return rates
        except (HeadraceError, OSError) as problem:
            LOG.error("%s: no rates to stand in: %s", self._spec.line, problem)
        return None

    def _known(self) -> Iterable[str]:
        present = self._lines.champion()
        first = [] if present is None else [present.version]
        return chain(first, (champion.version for champion in self._lines.earlier()))

    def _of(self, version: str) -> Rates | None:
        try:
            found = self._lines.get(version)
            tasks = found.rates(conversion=self._spec.converts)
        except (HeadraceError, KeyError) as problem:
            LOG.warning("%s: %s tells no rates: %s", self._spec.line, version, problem)
            return None
        known = all(0 <= rate <= 1 for rate in tasks.values())  # a NaN is not
        return Rates(tasks, found.watermark_us) if known else None

    def _declared(self) -> Rates | None:
        constant = self._spec.serving.prior
        return None if constant is None else Rates({"click": constant}, None)
