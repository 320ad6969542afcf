"""Who may ask, and how often: tokens and the rate, the same over REST and gRPC.

Three kinds of question. Health, readiness, metadata and the documents are open. Scoring asks for
`HEADRACE_SCORE_TOKEN`. Looking inside (status, race, metrics) and asking for a version by name,
which loads a model, ask for `HEADRACE_ADMIN_TOKEN`, which opens scoring too. A token that is not
set is not asked for (docs/adr/0035).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Literal

from headrace.declaration.serving import RateSpec
from headrace.settings import Settings
from headrace.tokens import held, is_one_of, shown

Reason = Literal["unknown", "forbidden", "limited"]


class TurnedAway(Exception):
    """A request that is not taken, whatever it holds.

    `unknown`: it shows no token that the server knows. `forbidden`: it shows one that is not for
    this. `limited`: it may come again after `retry_after_s`.
    """

    def __init__(self, reason: Reason, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.retry_after_s = reason, detail, retry_after_s


class Bucket:
    """A token bucket: `per_second` requests, and as many at once as it holds when full."""

    def __init__(self, rate: RateSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = rate.per_second, float(rate.at_once), clock
        self._held, self._at = self._most, clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Seconds until a request may come; 0 when this one was let in."""
        with self._lock:
            now = self._clock()
            self._held = min(self._most, self._held + (now - self._at) * self._per_s)
            self._at = now
            if self._held >= 1:
                self._held -= 1
                return 0.0
            return (1 - self._held) / self._per_s


class Access:
    """What a server asks of its callers. Safe for threads; nothing of a token is ever logged."""

    def __init__(self, settings: Settings, rate: RateSpec | None) -> None:
        self._score = held(settings.score_token)
        self._admin = held(settings.admin_token)
        self._bucket = None if rate is None else Bucket(rate)

    def score(self, authorization: str | None, *, pinned: bool = False) -> None:
        """Let a scoring request in. Raises `TurnedAway`; one without its token costs no rate."""
        token = shown(authorization)
        if pinned and self._admin is not None:
            self._require(token, self._admin, "asking for a version by name")
        elif self._score is not None and not is_one_of(token, self._score, self._admin):
            raise _unknown("scoring", token)
        wait_s = 0.0 if self._bucket is None else self._bucket.take()
        if wait_s:
            why = "more scoring requests come than the line's serving.rate allows; come again later"
            raise TurnedAway("limited", why, max(math.ceil(wait_s), 1))

    def look(self, authorization: str | None) -> None:
        """Let somebody look inside. Raises `TurnedAway`."""
        if self._admin is not None:
            self._require(shown(authorization), self._admin, "looking inside")

    def _require(self, token: bytes | None, admin: bytes, what: str) -> None:
        if is_one_of(token, admin):
            return
        if is_one_of(token, self._score):
            raise TurnedAway("forbidden", f"{what} needs the server's admin token")
        raise _unknown(what, token)


def _unknown(what: str, token: bytes | None) -> TurnedAway:
    told = "no token came" if token is None else "the token that came is not known"
    return TurnedAway(
        "unknown", f"{what} needs a token and {told}; send `authorization: Bearer <token>`"
    )
