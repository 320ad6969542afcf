"""All claims put to the evidence: the verdict, and whether the learned window is to blame. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from headrace.declaration import ModelGateSpec
from headrace.gates import claims as hold
from headrace.gates.evidence import Evidence, number

_BLAMES: Final = {
    *("logloss_not_worse", "conversion_logloss_not_worse", "auc_not_worse"),
    *("scores_near_champion", "no_slice_collapses", "importance_spread"),
}
"""Claims whose failure speaks against the window that was learned."""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate passed, why not, and by which claims (`failed`).

    `blames_window`: the window that was learned is at fault, so it belongs in quarantine.
    """

    passed: bool
    reasons: tuple[str, ...]
    failed: tuple[str, ...] = ()
    blames_window: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def judge(
    gate: ModelGateSpec,
    evidence: Evidence | None,
    *,
    now_us: int,
    line: str,
    candidate: str,
    champion: str,
    converts: bool = False,
    step: bool = False,
) -> Verdict:
    """Put all claims to the evidence. `champion` is the version now, or `PRIOR` without one.

    `converts`: the line has conversions, so there must be figures of them. `step`: a learner's,
    too many a minute to measure importance, time and bytes of each.
    Rejects without evidence. The window is blamed where the model that learned it is broken or
    worse than the champion, not where evidence alone is lacking.
    """
    if evidence is None:
        return Verdict(False, ("evidence: none for the candidate, must exist",), ("evidence",))
    claims = (
        hold.evidence_is_for_these_versions(evidence, line, candidate, champion),
        hold.descends_from_champion(evidence, champion),
        hold.evidence_fresh(evidence, now_us, gate.max_evidence_age),
        hold.data_gate_passed(evidence),
        hold.evaluated_on_later_rows(evidence),
        hold.enough_rows(evidence, gate.min_rows),
        hold.evaluation_rows_plausible(evidence),
        hold.weights_finite(evidence),
        hold.parity_holds(evidence),
        hold.logloss_not_worse(evidence, gate.max_logloss_increase),
        hold.calibration_within(evidence, gate.calibration),
        hold.auc_not_worse(evidence, gate.max_auc_drop),
        hold.scores_near_champion(evidence, gate.max_score_shift),
        hold.no_slice_collapses(evidence, gate),
        *(hold.conversions_hold(evidence, gate) if converts else ()),
        *(() if step else (hold.importance_spread(evidence, gate.max_importance),)),
        *(() if step else (hold.small_and_quick(evidence, gate),)),
    )
    reasons = tuple(reason for reason in claims if reason is not None)
    failed = tuple(reason.split(":", 1)[0] for reason in reasons)
    return Verdict(not reasons, reasons, failed, _blames_window(evidence, failed))


def judge_step(
    gate: ModelGateSpec,
    evidence: Evidence,
    *,
    now_us: int,
    line: str,
    champion: str,
    max_audit_age_us: int,
    converts: bool = False,
) -> Verdict:
    """All claims of `judge` on a learner's step, and those that only a step can prove.

    An update of an unusual size blames the window that made it.
    """
    verdict = judge(
        gate,
        evidence,
        now_us=now_us,
        line=line,
        candidate=str(evidence.candidate),
        champion=champion,
        converts=converts,
        step=True,
    )
    unusual = hold.update_norm_usual(evidence, gate.max_update_growth)
    more = [
        each for each in (unusual, hold.audit_fresh(evidence, max_audit_age_us)) if each is not None
    ]
    reasons = (*verdict.reasons, *more)
    failed = tuple(reason.split(":", 1)[0] for reason in reasons)
    blamed = verdict.blames_window or unusual is not None
    return Verdict(not reasons, reasons, failed, blamed)


def _blames_window(evidence: Evidence, failed: tuple[str, ...]) -> bool:
    about_evidence = {
        "evidence_is_for_these_versions",
        "descends_from_champion",
        "evidence_fresh",
        "evaluated_on_later_rows",
        "enough_rows",
        "evaluation_rows_plausible",
        "parity_holds",
        "conversions_measured",
    }
    if evidence.finite is False:
        return True
    if about_evidence & set(failed):
        return False
    # Off calibration yet better than the champion: the world moved, and the window is the cure.
    # Without a positive row there is no calibration, and nothing that speaks against the window.
    off = "calibration_within" in failed and math.isfinite(number(evidence.calibration))
    worse = off and evidence.logloss_diff > 0
    return worse or bool(_BLAMES & set(failed))
