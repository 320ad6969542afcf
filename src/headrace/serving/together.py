"""Requests over HTTP that wait at the same moment are scored together (docs/adr/0036).

The cost of a request is one of calls, not of rows. While some are scored, others arrive; the event
loop takes in all that have come, and the next turn scores them at once. Nobody waits for company: a
request that is alone is scored alone.
"""

from __future__ import annotations

import asyncio
from typing import Final

from headrace.serving.scored import Scored
from headrace.serving.scorer import Asked, Scorer

MOST_ROWS: Final = 1024
"""Candidates that are scored in one turn, or one request: the loop must not stand still."""


class Together:
    """Scores requests on the event loop. To be used from one loop."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._waiting: list[tuple[Asked, asyncio.Future[Scored]]] = []

    async def score(self, asked: Asked) -> Scored:
        """What `Scorer.score` gives and raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Scored] = loop.create_future()
        if not self._waiting:
            # once around the loop: what lies in the sockets by now gets here before the turn
            loop.call_soon(loop.call_soon, self._turn)
        self._waiting.append((asked, answer))
        return await answer

    def _turn(self) -> None:
        taken, rows = 0, 0
        for asked, _ in self._waiting:
            rows += asked.candidates.num_rows
            if taken and rows > MOST_ROWS:
                asyncio.get_running_loop().call_soon(self._turn)
                break
            taken += 1
        now, self._waiting = self._waiting[:taken], self._waiting[taken:]
        outcomes = self._scorer.score_together([asked for asked, _ in now])
        for (_, answer), outcome in zip(now, outcomes, strict=True):
            if answer.done():  # its sender has left
                continue
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
