"""Who may send events to a collector, and who may look at it: tokens, as the scoring server asks.

`HEADRACE_COLLECT_TOKEN` is for events, `HEADRACE_ADMIN_TOKEN` for status and metrics, and for
events too; health is open. A token that is not set is not asked for (docs/adr/0072).
"""

from __future__ import annotations

import logging

from headrace.ingest.limits import Refusal
from headrace.settings import Settings
from headrace.tokens import held, is_one_of, shown

LOG = logging.getLogger(__name__)


class Door:
    """What a collector asks of its callers. Safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self._collect = held(settings.collect_token)
        self._admin = held(settings.admin_token)
        self._settings = settings

    def send(self, authorization: str | None) -> None:
        """Let events in. Raises `Refusal` (401)."""
        if self._collect is not None:
            _require(authorization, "sending events", self._collect, self._admin)

    def look(self, authorization: str | None) -> None:
        """Let somebody see status and metrics. Raises `Refusal` (401)."""
        if self._admin is not None:
            _require(authorization, "looking at the collector", self._admin)

    def warn(self, line: str) -> None:
        """Say so where anybody on a network may send events."""
        if self._collect is None and not self._settings.on_loopback:
            LOG.warning("%s: whoever reaches %s may send events; set HEADRACE_COLLECT_TOKEN",
                        line, self._settings.host)  # fmt: skip


def _require(authorization: str | None, what: str, *known: bytes | None) -> None:
    token = shown(authorization)
    if not is_one_of(token, *known):
        told = "no token came" if token is None else "the token that came is not for this"
        why = f"{what} needs a token and {told}; send `authorization: Bearer <token>`"
        raise Refusal(401, "unknown", why)
