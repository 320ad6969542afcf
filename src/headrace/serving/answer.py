"""Who answers a request: the model that is due, or who stands in for it, in the declared order."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import DEFAULTS, PREVIOUS, PRIOR
from headrace.model.inputs import rows_of
from headrace.raw import Candidates
from headrace.requests import Columns
from headrace.serving.arms import Drawn
from headrace.serving.features import Features
from headrace.serving.loaded import Loaded
from headrace.serving.pinned import Held, Pinned
from headrace.serving.predict import predict
from headrace.serving.prior import Prior
from headrace.serving.swap import Follower

LOG = logging.getLogger(__name__)
RECENT: Final = 4096
RECENT_S: Final = 60.0
Tasks = dict[str, NDArray[np.float64]]
Use = Callable[[], AbstractContextManager[Loaded | Held]]


@dataclass(frozen=True)
class Answer:
    """Scores by task, each (n,); the version that gave them, or `prior`, and its watermark (None:
    nothing was learned). `stand_ins`: who stood in, in the order of the declaration.
    """

    tasks: Tasks
    version: str
    watermark_us: int | None
    stand_ins: tuple[str, ...]


class Answers:
    """Answers by the arm that was drawn, by a pinned version, or by who stands in.

    A request that pins a version wants that one: only its features may be defaults.
    """

    def __init__(
        self, spec: LineSpec, features: Features, models: Follower, pinned: Pinned, prior: Prior
    ) -> None:
        self._spec = spec
        self._order = spec.serving.fallback
        self._features = features
        self._models = models
        self._pinned = pinned
        self._prior = prior
        self._counts: Counter[str] = Counter()
        self._recent: deque[tuple[float, tuple[str, ...]]] = deque(maxlen=RECENT)
        self._counting = threading.Lock()
        self._told: set[str] = set()

    def warm(self) -> None:
        """Read once before the first request; without the store only where somebody stands in."""
        try:
            self._features.warm()
        except EnvironmentFault:
            if DEFAULTS not in self._order and PRIOR not in self._order:
                raise

    def read(self, asked: Candidates, pin: str | None) -> tuple[Columns, EnvironmentFault | None]:
        """Features of the requests, or defaults and why they are missing.

        Raises `EnvironmentFault` where nobody could answer without features.
        """
        try:
            return self._features.read(asked), None
        except EnvironmentFault as missing:
            if DEFAULTS not in self._order and (pin or PRIOR not in self._order):
                raise
            return self._features.defaults(asked), missing

    def give(
        self,
        drawn: Drawn,
        pin: str | None,
        inputs: Columns,
        missing: EnvironmentFault | None,
        requests: int = 1,
    ) -> Answer:
        """Score these inputs, of so many requests. Raises `EnvironmentFault` where nobody can."""
        answer = self._first(drawn, pin, inputs, missing)
        if answer.stand_ins:
            with self._counting:
                self._counts.update(answer.stand_ins * requests)
                self._recent.extend([(time.monotonic(), answer.stand_ins)] * requests)
        return answer

    def about(self) -> dict[str, Any]:
        """The declared order, the answers of each since the start and lately, what is missing now.

        `recent`: of the last minute, 4,096 at most.
        """
        since = time.monotonic() - RECENT_S
        with self._counting:
            counts = {name: self._counts[name] for name in (DEFAULTS, PREVIOUS, PRIOR)}
            lately = Counter(
                who for at, stood_in in self._recent if at >= since for who in stood_in
            )
        return {
            "order": list(self._order),
            "answers": counts,
            "recent": {name: lately[name] for name in counts},
            "outages": self._features.outages,
            "missing": self._features.fault,
        }

    def _first(
        self, drawn: Drawn, pin: str | None, inputs: Columns, missing: EnvironmentFault | None
    ) -> Answer:
        said = () if missing is None else (DEFAULTS,)
        problem = missing
        if missing is None or DEFAULTS in self._order:
            follower = drawn.follower or self._models
            try:
                if pin is not None:
                    return self._of(lambda: self._pinned.use(pin), inputs, said)
                return self._of(follower.use, inputs, said, follower)
            except EnvironmentFault as fault:
                if pin is not None:
                    raise
                problem = fault
            if PREVIOUS in self._order:
                champion = [] if drawn.follower is None else [self._models.use]
                for use in (*champion, self._models.use_previous):
                    try:
                        return self._of(use, inputs, (*said, PREVIOUS))
                    except EnvironmentFault as fault:
                        LOG.debug("%s: %s", self._spec.line, fault)
        rates = self._prior.rates() if PRIOR in self._order and self._models.tried else None
        if rates is None:
            assert problem is not None
            raise problem
        tasks = {task: np.full(rows_of(inputs), rate) for task, rate in rates.tasks.items()}
        return Answer(tasks, PRIOR, rates.watermark_us, (*said, PRIOR))

    def _of(
        self, use: Use, inputs: Columns, said: tuple[str, ...], follower: Follower | None = None
    ) -> Answer:
        with use() as loaded:
            version = loaded.version
            try:
                tasks = predict(loaded, inputs)
            except EnvironmentFault as problem:
                if version.version not in self._told:
                    self._told.add(version.version)
                    LOG.error("%s: %s", self._spec.line, problem)
                raise
        if follower is not None and isinstance(loaded, Loaded) and follower.stands_in(loaded):
            said = (*said, PREVIOUS)
        return Answer(tasks, version.version, version.watermark_us, said)
