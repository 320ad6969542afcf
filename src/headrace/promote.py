"""Move the champion by compare-and-swap: forward if the evidence suffices, back when told to."""

from __future__ import annotations

import time
from typing import Final

from headrace import gates, turns
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, HeadraceError, InputError
from headrace.gates import PRIOR, Evidence, Verdict
from headrace.line import Champion, LineStore, Version
from headrace.sample import Quarantine
from headrace.settings import Settings

ROLLBACK_S: Final = 5.0
"""How long at most a learner leaves the champion alone for a rollback."""


def promote(settings: Settings, spec: LineSpec, candidate: str) -> Verdict:
    """Store the verdict with the candidate; promote it if passed. Repeating is harmless.

    Losing the swap to another writer is a rejection, not an error. A rejected incremental
    window that made the model worse goes to quarantine; a window that was only short of
    evidence is learned again by the next cycle.
    """
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    try:
        return _promote(settings, spec, store, candidate)
    finally:
        if store.get(candidate).parent is None:  # its evaluation made a learner hold
            turns.release(settings.line_home(spec.line))


def _promote(settings: Settings, spec: LineSpec, store: LineStore, candidate: str) -> Verdict:
    home = settings.line_home(spec.line)
    champion = store.champion()
    if champion is not None and champion.version == candidate:
        return Verdict(True, ())  # an earlier attempt got this far before it was killed
    stored = store.evidence(candidate)
    evidence = None if stored is None else Evidence.from_dict(stored)
    verdict = gates.judge(
        spec.gates.model,
        evidence,
        now_us=time.time_ns() // 1_000,
        line=spec.line,
        candidate=candidate,
        champion=PRIOR if champion is None else champion.version,
        converts=spec.converts,
    )
    store.put_verdict(candidate, verdict.to_dict())
    if verdict.passed:
        try:
            store.advance(champion, candidate, action="promote", reason=_summary(evidence))
        except ConflictError as problem:
            verdict = Verdict(False, (f"champion_unmoved: {problem}",), ("champion_unmoved",))
            store.put_verdict(candidate, verdict.to_dict())
    elif verdict.blames_window and store.get(candidate).parent is not None:
        version = store.get(candidate)
        Quarantine(home).add(version.from_tick, version.to_tick, list(verdict.reasons))
    return verdict


def roll_back(
    settings: Settings,
    spec: LineSpec,
    to: str | None = None,
    reason: str = "",
    learn_again: bool = False,
    *,
    expected: Champion | None = None,
) -> Champion:
    """Make an earlier version champion again, and keep out what the abandoned ones had learned.

    If the present version continues the other, the ticks between them go to quarantine, so that
    the next increment does not learn them into the line again; release them, or give
    `learn_again`, if they were good. With `expected`, nothing but that champion is rolled back.
    Raises as `LineStore.rollback` does; nothing is quarantined then.
    """
    with turns.holding(settings.line_home(spec.line), f"a rollback: {reason}", ROLLBACK_S):
        return _roll_back(settings, spec, to, reason, learn_again=learn_again, expected=expected)


def _roll_back(
    settings: Settings,
    spec: LineSpec,
    to: str | None,
    reason: str,
    *,
    learn_again: bool,
    expected: Champion | None,
) -> Champion:
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    present, target = store.rollback_target(to)
    if expected is not None and present != expected:
        raise ConflictError(
            f"line {spec.line!r}: {expected.version!r} was to be rolled back, but "
            f"{present.version!r} serves now ({present.action}); look at that one"
        )
    left, back = store.get(present.version), store.get(target)
    start, end = back.to_tick, left.to_tick
    quarantine = Quarantine(settings.line_home(spec.line))
    new = not any((q["from"], q["to"]) == (start, end) for q in quarantine.intervals())
    keeps_out = new and not learn_again and start < end and _continues(store, left, target)
    if keeps_out:  # before the champion moves: a cycle may plan right after
        quarantine.add(start, end, [f"rolled back from {left.version} to {target}: {reason}"])
    try:
        return store.advance(present, target, "rollback", reason)
    except HeadraceError:
        if keeps_out:
            quarantine.release(start, end)
        raise


def _continues(store: LineStore, version: Version, ancestor: str) -> bool:
    while version.parent is not None:
        if version.parent == ancestor:
            return True
        try:
            version = store.get(version.parent)
        except InputError:  # a learner's, long gone: none that could be returned to is older
            return False
    return False


def _summary(evidence: Evidence | None) -> str:
    if evidence is None:
        return ""
    return (
        f"log loss {evidence.candidate_logloss:.5f} against {evidence.champion_logloss:.5f} of "
        f"{evidence.champion} on {evidence.rows} later rows"
    )
