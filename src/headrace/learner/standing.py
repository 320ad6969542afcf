"""Where the learner stands: the champion in memory, and the candidate that continues it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from headrace import train
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, InputError
from headrace.line import Champion, LineStore, Version
from headrace.line.version import LEARN
from headrace.model import Model, State
from headrace.serving.resident import Resident
from headrace.settings import Settings

USUAL_STEPS: Final = 64
FEWEST_STEPS: Final = 8
"""Before so many steps no update is called unusual."""


@dataclass(frozen=True)
class Candidate:
    """A published version that waits for its verdict, and what sets it apart from the champion.

    `norm`: Euclidean norm of the change of every number of the state, by the root of the rows
    learned (a corrected one counts as many as it weighs). `finite`: whether champion and change
    are.
    """

    version: Version
    changes: State
    norm: float
    finite: bool


class Models:
    """The two models of a line's learner; making them costs seconds, loading them does not."""

    def __init__(self, spec: LineSpec) -> None:
        self.candidate = Model(
            spec.model, spec.seed, spec.label.delayed_feedback, conversion=spec.converts
        )
        self.champion = Resident(spec)


class Standing:
    """Two models: the champion's, and one that has learned what came since.

    Whatever a candidate comes to, the champion's state is at hand: nothing is read again.
    """

    def __init__(
        self, settings: Settings, spec: LineSpec, store: LineStore, models: Models
    ) -> None:
        """Take up the present champion. Raises `InputError` while there is none."""
        self._settings, self._spec, self._store = settings, spec, store
        self._model, self._champions = models.candidate, models.champion
        self._norms: deque[float] = deque(maxlen=USUAL_STEPS)
        self.candidate: Candidate | None = None
        champion = store.champion()
        if champion is None:
            raise InputError(
                f"line {spec.line!r} has no champion to continue; run full_train first"
            )
        self.take_up(champion)

    def take_up(self, champion: Champion) -> None:
        """Go on from this champion, whoever made it. A candidate of the former one is dropped."""
        version, state = self._store.load(champion.version)
        train.require_same_code(self._spec, version)
        self._champions.load(version, state)
        self._model.load_state(state)
        self._finite = self._model.is_finite()
        self.champion, self.candidate = champion, None

    @property
    def version(self) -> Version:
        """The champion's."""
        assert self._champions.version is not None
        return self._champions.version

    @property
    def models(self) -> tuple[Model, Model]:
        """The candidate's and the champion's."""
        return self._model, self._champions.model

    @property
    def usual_norm(self) -> float | None:
        """Median norm of the newest updates that were promoted; None while there are few."""
        return median(self._norms) if len(self._norms) >= FEWEST_STEPS else None

    def learn(self, to_tick: int) -> Candidate | None:
        """Learn what `train.incremental` would learn of ticks `[champion's end, to_tick)`, and
        publish it; None when all of it is in quarantine.
        """
        assert self.candidate is None
        settings, spec, parent = self._settings, self._spec, self.version
        window = train.window_samples(settings, spec, parent.to_tick, to_tick)
        if not window.samples.num_rows:
            return None
        lesson = train.lesson_of(settings, spec, window)
        loss = self._model.learn(lesson.rows).loss
        changes = self._model.delta()
        learned = train.Learned.of(spec, window).after(lesson, loss)
        about = train.about(settings, spec, learned, parent)
        about["publisher"] = "learner"
        version = self._store.publish_delta(
            changes,
            parent=parent,
            fingerprint=self._champions.carried(changes),
            **about,
        )
        weight = window.samples.num_rows + lesson.case_weight
        self.candidate = self._measured(version, changes, weight)
        return self.candidate

    def promote(self, reason: str) -> None:
        """Make the candidate champion. Raises `ConflictError` when another writer was faster."""
        candidate = self.candidate
        assert candidate is not None
        version = candidate.version
        self.champion = self._store.advance(self.champion, version.version, LEARN, reason)
        self._champions.advance(version, candidate.changes)
        self._model.mark()
        self._norms.append(candidate.norm)
        self.candidate = None

    def fall_back(self) -> None:
        """Forget the candidate: the model is the champion's again."""
        self._model.load_state(self._champions.state())
        self.candidate = None

    def moved(self) -> Champion | None:
        """The champion that another writer made since, None when ours still is it."""
        now = self._store.champion()
        if now is None:
            raise ConflictError(f"line {self._spec.line!r} lost its champions; restore them")
        return None if now.generation == self.champion.generation else now

    def _measured(self, version: Version, changes: State, rows: float) -> Candidate:
        squares, finite = 0.0, self._finite
        for key, new in changes.items():
            kind, _, name = key.partition("/")
            if kind not in ("whole", "values") or not np.issubdtype(new.dtype, np.floating):
                continue
            old = self._champions.held(name, changes[f"rows/{name}"] if kind == "values" else None)
            finite = finite and bool(np.isfinite(new).all())
            if old is not None and old.shape == new.shape:  # a table that grew is no update
                squares += float(np.square(new.astype(np.float64) - old).sum())
        norm = float(np.sqrt(squares / rows))
        return Candidate(version, changes, norm, finite)
