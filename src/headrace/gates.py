"""Evidence in, verdict out: the claims that a candidate must prove before it may serve.

Each claim is a small pure function. It returns None where it holds and otherwise the reason,
which names the claim, the figure and the bound. Every comparison is written so that a missing
or NaN figure fails it: the gate fails closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from headrace.declaration import ModelGateSpec

PRIOR: Final = "prior"
"""Stands for the champion while a line has none: the constant rate of the training rows."""

Reason = str | None

SUSPICIOUS: Final = 0.5
"""Share of the label's entropy that one input may explain whatever the others do."""
_BLAMES: Final = {
    *("logloss_not_worse", "conversion_logloss_not_worse", "auc_not_worse"),
    *("scores_near_champion", "no_slice_collapses", "importance_spread"),
}
"""Claims whose failure speaks against the window that was learned."""


@dataclass(frozen=True)
class TaskEvidence:
    """What was measured of one more task, on those of the rows whose label is settled.

    `positives` of them; the figures are as those of `Evidence`.
    """

    rows: int | None = None
    positives: int | None = None
    candidate_logloss: float | None = None
    champion_logloss: float | None = None
    logloss_diff_low: float | None = None
    logloss_diff_high: float | None = None
    calibration: float | None = None
    calibration_low: float | None = None
    calibration_high: float | None = None
    auc: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What was measured on a candidate. A figure that could not be measured is None.

    Ticks are half-open `[from, to)`. Log losses are means in nats over the same `rows`;
    `logloss_diff_*` is candidate minus champion. `parity_expected` counts the checked rows that
    a server answered (bootstrapped rows were never served and have nothing to compare);
    `parity_history` says by which join history was read beside the log, `parity_causes` counts
    the mismatches by cause. `candidate_logloss_error` (standard error) and `score_deciles` (nine)
    are for the guard, which compares with them what the version does once it serves. `tasks`, where
    a line has conversions: of `click_and_conversion` over all rows, which the gate judges, and of
    `conversion` over the clicked ones. `score_shift`, `slices` and `importance` are those of
    `suspicion`; `predict_us` a row takes, `bytes` the version. The last three are of a learner's
    step: the norm of its update by row, the median of the steps before, and when parity and data
    gate were last asked in full.
    """

    line: str | None = None
    candidate: str | None = None
    parent: str | None = None
    champion: str | None = None
    train_from_tick: int | None = None
    train_to_tick: int | None = None
    champion_to_tick: int | None = None
    eval_from_tick: int | None = None
    eval_to_tick: int | None = None
    rows: int | None = None
    candidate_logloss: float | None = None
    champion_logloss: float | None = None
    logloss_diff_low: float | None = None
    logloss_diff_high: float | None = None
    calibration: float | None = None
    calibration_low: float | None = None
    calibration_high: float | None = None
    auc: float | None = None
    finite: bool | None = None
    parity_rows: int | None = None
    parity_expected: int | None = None
    parity_mismatches: int | None = None
    parity_causes: dict[str, int] | None = None
    parity_history: str | None = None
    data_passed: bool | None = None
    eval_rows_plausible: bool | None = None
    candidate_logloss_error: float | None = None
    score_deciles: list[float] | None = None
    made_at_us: int | None = None
    tasks: dict[str, TaskEvidence] | None = None
    champion_auc: float | None = None
    auc_diff_low: float | None = None
    auc_diff_high: float | None = None
    ks: float | None = None
    score_shift: float | None = None
    slices: dict[str, dict[str, Any]] | None = None
    importance: dict[str, float] | None = None
    predict_us: float | None = None
    bytes: int | None = None
    update_norm: float | None = None
    update_norm_usual: float | None = None
    audited_at_us: int | None = None

    @property
    def logloss_diff(self) -> float:
        """Mean of candidate minus champion; NaN where either is missing."""
        return _number(self.candidate_logloss) - _number(self.champion_logloss)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; non-finite floats become None, which no claim accepts as a figure."""
        body: dict[str, Any] = _json_ready(asdict(self))
        if self.tasks is None:
            del body["tasks"]
        return body

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Evidence:
        """Read stored evidence; what it does not hold is None, and so is rejected."""
        found = {f.name: stored.get(f.name) for f in fields(cls)}
        if found["tasks"] is not None:
            found["tasks"] = {
                task: TaskEvidence(**{f.name: body.get(f.name) for f in fields(TaskEvidence)})
                for task, body in found["tasks"].items()
            }
        return cls(**found)


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


def data_gate_passed(evidence: Evidence) -> Reason:
    """The data gate has passed exactly the window that the candidate learned."""
    if evidence.data_passed is True:
        return None
    return f"data_gate_passed: {evidence.data_passed}, must be True for the window learned"


def evidence_is_for_these_versions(
    evidence: Evidence, line: str, candidate: str, champion: str
) -> Reason:
    """The evidence compares this candidate of this line with the champion of this moment."""
    found = (evidence.line, evidence.candidate, evidence.champion)
    if found == (line, candidate, champion):
        return None
    return (
        f"evidence_is_for_these_versions: is for {found}, must be for {(line, candidate, champion)}"
    )


def descends_from_champion(evidence: Evidence, champion: str) -> Reason:
    """An incremental candidate continues the champion of this moment; a full one has no parent."""
    if evidence.parent is None or evidence.parent == champion:
        return None
    return f"descends_from_champion: parent is {evidence.parent}, champion is now {champion}"


def evidence_fresh(evidence: Evidence, now_us: int, max_age_us: int) -> Reason:
    """The evidence is at most `max_age_us` old and not from the future."""
    if evidence.made_at_us is None:
        return "evidence_fresh: made_at is missing, must be recorded"
    age = now_us - evidence.made_at_us
    if 0 <= age <= max_age_us:
        return None
    return f"evidence_fresh: {age / 1e6:.1f} s old, must be between 0 and {max_age_us / 1e6:.0f} s"


def evaluated_on_later_rows(evidence: Evidence) -> Reason:
    """No evaluation row was learned by the candidate or by the champion."""
    start, end = evidence.eval_from_tick, evidence.eval_to_tick
    learned = evidence.train_to_tick
    if start is None or end is None or learned is None or evidence.champion_to_tick is None:
        return f"evaluated_on_later_rows: ticks {start} to {end}, must be recorded"
    bound = max(learned, evidence.champion_to_tick)
    if bound <= start <= end:
        return None
    return f"evaluated_on_later_rows: from tick {start}, must start at tick {bound} or later"


def enough_rows(evidence: Evidence, min_rows: int) -> Reason:
    """At least `min_rows` rows were compared."""
    if evidence.rows is not None and evidence.rows >= min_rows:
        return None
    return f"enough_rows: {evidence.rows} later rows, must be at least {min_rows}"


def evaluation_rows_plausible(evidence: Evidence) -> Reason:
    """The data gate would take the evaluation rows: spoiled ones judge nobody."""
    if evidence.eval_rows_plausible is True:
        return None
    return (
        f"evaluation_rows_plausible: {evidence.eval_rows_plausible}, must be True "
        "(the later rows within gates.data)"
    )


def weights_finite(evidence: Evidence) -> Reason:
    """No weight or optimizer state of the candidate is NaN or infinite."""
    if evidence.finite is True:
        return None
    return f"weights_finite: {evidence.finite}, must be True"


def parity_holds(evidence: Evidence) -> Reason:
    """Every served row that was checked recomputes bit for bit, from the log and from history,
    and every one was checked.
    """
    rows, expected = evidence.parity_rows, evidence.parity_expected
    if rows is None or expected is None or rows < expected:
        return f"parity_holds: {rows} of {expected} served rows checked, must be all"
    if evidence.parity_history is None:
        return "parity_holds: served rows were not compared with history, must be"
    if evidence.parity_mismatches == 0:
        return None
    causes = ", ".join(f"{n} {cause}" for cause, n in (evidence.parity_causes or {}).items())
    return (
        f"parity_holds: {evidence.parity_mismatches} mismatches in {rows} rows "
        f"({causes or 'cause unknown'}), must be 0"
    )


def logloss_not_worse(evidence: Evidence, max_increase: float) -> Reason:
    """The candidate's log loss is not worse than the champion's on the same rows.

    Holds when the whole bootstrap interval of (candidate - champion) lies at or below
    `max_increase` (shown to be no worse), or when the mean does and the interval reaches
    down to 0 (not shown to be worse). The second half keeps good candidates from being
    refused for want of rows: with a few hundred of them the interval is about as wide as the
    margin, while a candidate trained on flipped labels lies many margins above it.
    """
    low, high = _number(evidence.logloss_diff_low), _number(evidence.logloss_diff_high)
    mean = evidence.logloss_diff
    if math.isfinite(low) and low <= high:
        shown_no_worse = mean <= max_increase and high <= max_increase
        not_shown_worse = mean <= max_increase and low <= 0.0
        if shown_no_worse or not_shown_worse:
            return None
    return (
        f"logloss_not_worse: {mean:+.5f} against {evidence.champion} (interval {low:+.5f} to "
        f"{high:+.5f}), must be at most {max_increase:+.5f} and not clearly above 0"
    )


def calibration_within(evidence: Evidence, bounds: tuple[float, float]) -> Reason:
    """Mean prediction over mean label lies within the bounds, as far as the rows can tell.

    With ten positives the figure itself scatters by a third, so the claim fails only where
    its whole interval (`metrics.calibration_interval`) lies outside the bounds.
    """
    low, high = _number(evidence.calibration_low), _number(evidence.calibration_high)
    figure = _number(evidence.calibration)
    if math.isfinite(figure) and low <= bounds[1] and high >= bounds[0]:
        return None
    return (
        f"calibration_within: {figure:.3f} (interval {low:.3f} to "
        f"{high:.3f}), must be between {bounds[0]} and {bounds[1]}"
    )


def auc_not_worse(evidence: Evidence, max_drop: float) -> Reason:
    """The candidate does not surely rank worse than the champion: the upper end of the interval of
    the difference (`metrics.auc_difference`) reaches -`max_drop`. `PRIOR` ranks nothing.
    """
    high = _number(evidence.auc_diff_high)
    if evidence.champion == PRIOR or high >= -max_drop:
        return None
    return (
        f"auc_not_worse: {_number(evidence.auc):.4f} against {_number(evidence.champion_auc):.4f} "
        f"(difference at most {high:+.4f}), must be at least {-max_drop:+.4f}"
    )


def scores_near_champion(evidence: Evidence, max_shift: float) -> Reason:
    """Candidate and champion score the same rows alike, as distributions. Not asked of `PRIOR`,
    nor of a model that was trained anew and has no parent.
    """
    if evidence.champion == PRIOR or evidence.parent is None:
        return None
    if _number(evidence.score_shift) <= max_shift:
        return None
    return (
        f"scores_near_champion: log odds moved by {_number(evidence.score_shift):.3f} on average, "
        f"must be at most {max_shift}"
    )


def no_slice_collapses(evidence: Evidence, gate: ModelGateSpec) -> Reason:
    """No declared slice is surely worse than the champion by more than its bound."""
    if not gate.slices:
        return None
    if evidence.slices is None:
        return "no_slice_collapses: no figures of slices, must be measured"
    bound = gate.max_slice_logloss_increase
    worse = {
        name: each["logloss_diff_low"]
        for name, each in evidence.slices.items()
        if not _number(each["logloss_diff_low"]) <= bound
    }
    if not worse:
        return None
    name, low = max(worse.items(), key=lambda each: _number(each[1]))
    return (
        f"no_slice_collapses: {name} and {len(worse) - 1} more slices; its log loss rose by "
        f"{_number(low):+.4f} at least, must be at most {bound:+.4f}"
    )


def importance_spread(evidence: Evidence, max_share: float) -> Reason:
    """No input explains nearly all that the candidate explains, and most of the label too: one
    that does may hold it.

    A single strong feature is common (an item that is clicked or not); one that leaves less than
    half of the label open is not.
    """
    if evidence.importance is None:
        return "importance_spread: not measured, must be"
    found = {name: _number(value) for name, value in evidence.importance.items()}
    total = sum(found.values())
    if not math.isfinite(total):
        return "importance_spread: not finite, must be measured"
    name, largest = max(found.items(), key=lambda each: each[1])
    if len(found) < 2 or largest <= max_share * total or largest <= SUSPICIOUS:
        return None
    return (
        f"importance_spread: {name} explains {largest / total:.0%} of what all inputs explain and "
        f"{largest:.0%} of the label, must be at most {max_share:.0%}; does it hold the label?"
    )


def small_and_quick(evidence: Evidence, gate: ModelGateSpec) -> Reason:
    """The candidate answers and is stored within what the line declares, if it does."""
    for what, found, most in (
        ("us a row", evidence.predict_us, gate.max_predict_time),
        ("bytes", evidence.bytes, gate.max_bytes),
    ):
        if most is not None and not _number(found) <= most:
            return f"small_and_quick: {found} {what}, must be at most {most}"
    return None


def update_norm_usual(evidence: Evidence, max_growth: float) -> Reason:
    """The step changed the model about as much as the steps before it."""
    norm, usual = _number(evidence.update_norm), _number(evidence.update_norm_usual)
    if math.isfinite(norm) and norm <= max_growth * usual:
        return None
    return (
        f"update_norm_usual: {norm:.4g} a row, must be at most {max_growth:g} times the "
        f"{usual:.4g} of the steps before"
    )


def audit_fresh(evidence: Evidence, max_age_us: int) -> Reason:
    """Parity and the whole data gate were asked at most `max_age_us` before the evidence."""
    if evidence.audited_at_us is None or evidence.made_at_us is None:
        return "audit_fresh: no audit was made, must be"
    age = evidence.made_at_us - evidence.audited_at_us
    if 0 <= age <= max_age_us:
        return None
    return f"audit_fresh: {age / 1e6:.1f} s old, must be between 0 and {max_age_us / 1e6:.0f} s"


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
    unusual = update_norm_usual(evidence, gate.max_update_growth)
    more = [each for each in (unusual, audit_fresh(evidence, max_audit_age_us)) if each is not None]
    reasons = (*verdict.reasons, *more)
    failed = tuple(reason.split(":", 1)[0] for reason in reasons)
    blamed = verdict.blames_window or unusual is not None
    return Verdict(not reasons, reasons, failed, blamed)


def conversions_hold(evidence: Evidence, gate: ModelGateSpec) -> list[Reason]:
    """Log loss and calibration of click-and-conversion, as those of the click.

    With fewer than `min_conversions` settled conversions the rows cannot tell, and nothing is
    claimed: conversions take longer than a cycle. Figures that are missing are refused.
    """
    figures = (evidence.tasks or {}).get("click_and_conversion", TaskEvidence())
    if figures.rows is None or figures.positives is None:
        return ["conversions_measured: no figures of click-and-conversion, must be measured"]
    if figures.positives < gate.min_conversions:
        return []
    shared = {f.name for f in fields(TaskEvidence)} - {"positives"}
    task = replace(evidence, **{name: getattr(figures, name) for name in shared})
    claims = (
        logloss_not_worse(task, gate.max_logloss_increase),
        calibration_within(task, gate.calibration),
    )
    return [None if reason is None else f"conversion_{reason}" for reason in claims]


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
        evidence_is_for_these_versions(evidence, line, candidate, champion),
        descends_from_champion(evidence, champion),
        evidence_fresh(evidence, now_us, gate.max_evidence_age),
        data_gate_passed(evidence),
        evaluated_on_later_rows(evidence),
        enough_rows(evidence, gate.min_rows),
        evaluation_rows_plausible(evidence),
        weights_finite(evidence),
        parity_holds(evidence),
        logloss_not_worse(evidence, gate.max_logloss_increase),
        calibration_within(evidence, gate.calibration),
        auc_not_worse(evidence, gate.max_auc_drop),
        scores_near_champion(evidence, gate.max_score_shift),
        no_slice_collapses(evidence, gate),
        *(conversions_hold(evidence, gate) if converts else ()),
        *(() if step else (importance_spread(evidence, gate.max_importance),)),
        *(() if step else (small_and_quick(evidence, gate),)),
    )
    reasons = tuple(reason for reason in claims if reason is not None)
    failed = tuple(reason.split(":", 1)[0] for reason in reasons)
    return Verdict(not reasons, reasons, failed, _blames_window(evidence, failed))


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
    off = "calibration_within" in failed and math.isfinite(_number(evidence.calibration))
    worse = off and evidence.logloss_diff > 0
    return worse or bool(_BLAMES & set(failed))


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_ready(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
