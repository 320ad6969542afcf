"""One step after the other: test, promote or refuse, train."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace import baseline, gates, records, turns
from headrace.declaration import LineSpec
from headrace.errors import ConflictError
from headrace.evaluate import figures, first_seen
from headrace.gates import Evidence, Verdict
from headrace.learner.audit import MAX_AGE_S, Audit, Auditor
from headrace.learner.intake import Chunk, Intake
from headrace.learner.standing import Candidate, Models, Standing
from headrace.line import Champion, LineStore
from headrace.records import Cycle
from headrace.sample import Quarantine
from headrace.settings import Settings

LOG = logging.getLogger(__name__)

MOST_CHUNKS: Final = 32
"""Accepted and waiting to be learned; beyond, a candidate that nobody can judge is given up."""


class Learner:
    """A line's learner: each `look` does what can be done now.

    `ticks_a_step` fixes how many ticks a chunk has, so that the same ticks always end in the same
    versions; by default a chunk is what has come. `auditor` and `models` may be those of an earlier
    learner of the line; without an auditor, audits are made in `look`.
    """

    def __init__(
        self,
        settings: Settings,
        spec: LineSpec,
        auditor: Auditor | None = None,
        ticks_a_step: int | None = None,
        models: Models | None = None,
    ) -> None:
        """Raises `InputError` while the line has no champion."""
        self._settings, self._spec = settings, spec
        self._home = settings.line_home(spec.line)
        self._store = LineStore(settings.line_store_url(spec.line), spec.line)
        self._standing = Standing(settings, spec, self._store, models or Models(spec))
        self._intake = Intake(settings, spec, ticks_a_step)
        self._intake.start_again(self._standing.version.to_tick)
        self._auditor = auditor or Auditor(settings, spec, None)
        self._waiting: deque[Chunk] = deque()  # accepted, and not learned yet
        self._asked = 0  # so many of them have judged the candidate, without a last word
        self._step = self._begin()

    @property
    def champion(self) -> Champion:
        return self._standing.champion

    @property
    def next_tick(self) -> int:
        """The first tick that has not come in yet."""
        return self._intake.next_tick

    def look(self) -> list[Cycle]:
        """Follow the champion, take in a chunk, judge, learn; the steps that ended by it."""
        ended = self._follow()
        chunk = self._intake.next()
        if chunk is not None:
            ended += self._take(chunk)
        self._learn()
        while (step := self._judge()) is not None:
            ended.append(step)
            self._learn()
        return ended

    def _follow(self) -> list[Cycle]:
        """Take up the champion that another writer made, and say why the candidate is dropped."""
        now = self._standing.moved()
        return [] if now is None else self._give_way(now)

    def _give_way(self, now: Champion) -> list[Cycle]:
        why = f"champion_unmoved: {now.version} is champion ({now.action}: {now.reason})"
        LOG.info("%s: %s; going on from it", self._spec.line, why)
        dropped, ended = self._standing.candidate, []
        if dropped is not None:
            verdict = Verdict(False, (why,), ("champion_unmoved",))
            ended.append(self._reject(dropped, verdict, "promote"))
        self._standing.take_up(now)
        self._start_again()
        return ended

    def _start_again(self) -> None:
        self._intake.start_again(self._standing.version.to_tick)
        self._waiting.clear()
        self._asked = 0

    def _take(self, chunk: Chunk) -> list[Cycle]:
        """Keep an accepted chunk for judging and learning; quarantine a refused one."""
        if not chunk.reasons:
            if chunk.samples.num_rows:
                self._waiting.append(chunk)
                self._auditor.offer(chunk)
            return []
        Quarantine(self._home).add(chunk.from_tick, chunk.to_tick, chunk.reasons)
        if (why := baseline.contradiction(chunk.reasons)) is not None:
            turns.freeze(self._home, why)
        refused = replace(self._begin(), interval=(chunk.from_tick, chunk.to_tick))
        return [self._note(refused, "rejected", "data", tuple(chunk.reasons))]

    def _judge(self) -> Cycle | None:
        """Put the candidate through the gates as soon as enough rows came after it; the end of
        its step, None while it has to wait.
        """
        candidate, audit = self._standing.candidate, self._auditor.newest()
        later = self._later()
        if candidate is None or audit is None or later is None or turns.held(self._home):
            return None
        rows, to_tick = later
        evidence = self._evidence(candidate, rows, to_tick, audit)
        self._store.put_evidence(candidate.version.version, evidence.to_dict())
        verdict = gates.judge_step(
            self._spec.gates.model,
            evidence,
            now_us=_now_us(),
            line=self._spec.line,
            champion=self._standing.champion.version,
            max_audit_age_us=int(MAX_AGE_S * 1e6),
            converts=self._spec.converts,
        )
        if verdict.passed:
            return self._promote(candidate, verdict, evidence)
        if verdict.blames_window:
            version = candidate.version
            Quarantine(self._home).add(version.from_tick, version.to_tick, verdict.reasons)
            self._standing.fall_back()
            self._asked = 0
        elif len(self._waiting) > MOST_CHUNKS:
            self._standing.fall_back()
            self._start_again()
        return self._reject(candidate, verdict, "model")

    def _later(self) -> tuple[pa.Table, int] | None:
        """Evaluation rows of as few of the next chunks as hold enough, and the tick they end at.

        Enough are `gates.model.min_rows`, a click among them: calibration is asked of nothing else.
        They are asked once: if they cannot settle it, because they are odd themselves or an audit
        failed, those that come next are asked.
        """
        parts: list[pa.Table] = []
        for place in range(self._asked, len(self._waiting)):
            chunk = self._waiting[place]
            parts.append(chunk.to_evaluate)
            rows = first_seen(pa.concat_tables(parts))
            enough = rows.num_rows >= self._spec.gates.model.min_rows
            if enough and pc.any(pc.greater(rows["label"], 0)).as_py():
                self._asked = place + 1
                return rows, chunk.to_tick
        return None

    def _evidence(
        self, candidate: Candidate, rows: pa.Table, to_tick: int, audit: Audit
    ) -> Evidence:
        """The candidate and the champion on rows that neither has learned."""
        version, champion = candidate.version, self._standing.version
        learned, served = (model.predict_tasks(rows) for model in self._standing.models)
        usual = self._standing.usual_norm  # of the first steps each is its own measure
        return Evidence(
            line=self._spec.line,
            candidate=version.version,
            parent=version.parent,
            champion=champion.version,
            train_from_tick=version.from_tick,
            train_to_tick=version.to_tick,
            champion_to_tick=champion.to_tick,
            eval_from_tick=version.to_tick,
            eval_to_tick=to_tick,
            **figures(self._spec, rows, learned, served),
            finite=candidate.finite,
            parity_rows=audit.proof.rows,
            parity_expected=audit.served,
            parity_mismatches=audit.proof.mismatches,
            parity_causes=audit.proof.by_cause,
            parity_history=audit.proof.history,
            data_passed=not audit.reasons,
            update_norm=candidate.norm,
            update_norm_usual=candidate.norm if usual is None else usual,
            audited_at_us=audit.at_us,
            made_at_us=_now_us(),
        )

    def _promote(self, candidate: Candidate, verdict: Verdict, evidence: Evidence) -> Cycle:
        self._store.put_verdict(candidate.version.version, verdict.to_dict())
        reason = (
            f"log loss {evidence.candidate_logloss:.5f} against {evidence.champion_logloss:.5f} "
            f"of {evidence.champion} on {evidence.rows} later rows"
        )
        try:
            self._standing.promote(reason)
        except ConflictError:
            now = self._standing.moved()
            if now is None:
                raise
            return self._give_way(now)[0]
        self._asked = 0
        version = candidate.version
        step = replace(self._step, interval=(version.from_tick, version.to_tick))
        return self._note(replace(step, version=version.version), "promoted", "promote")

    def _reject(self, candidate: Candidate, verdict: Verdict, stage: str) -> Cycle:
        version = candidate.version
        self._store.put_verdict(version.version, verdict.to_dict())
        interval = (version.from_tick, version.to_tick)
        step = replace(self._step, interval=interval, version=version.version)
        return self._note(step, "rejected", stage, verdict.reasons)

    def _learn(self) -> None:
        """Learn the next chunk on top of the champion: the next candidate."""
        while self._standing.candidate is None and self._waiting:
            self._step = self._begin()
            self._standing.learn(self._waiting.popleft().to_tick)

    def _begin(self) -> Cycle:
        return Cycle(run=records.new_run(), kind="learner", started_us=_now_us())

    def _note(
        self, step: Cycle, outcome: records.Outcome, stage: str, reasons: tuple[str, ...] = ()
    ) -> Cycle:
        ended = replace(step, outcome=outcome, stage=stage, reasons=reasons)
        return records.note(self._settings, self._spec, ended)


def _now_us() -> int:
    return time.time_ns() // 1_000
