"""The claims that a candidate must prove, one small function each. Pure.

A claim returns None where it holds and otherwise the reason, which names the claim, the figure and
the bound. Every comparison is written so that a missing or NaN figure fails it: the gate fails
closed.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Final

from headrace.declaration import ModelGateSpec
from headrace.gates.evidence import PRIOR, Evidence, TaskEvidence, number

Reason = str | None

SUSPICIOUS: Final = 0.5
"""Share of the label's entropy that one input may explain whatever the others do."""


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
    low, high = number(evidence.logloss_diff_low), number(evidence.logloss_diff_high)
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
    low, high = number(evidence.calibration_low), number(evidence.calibration_high)
    figure = number(evidence.calibration)
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
    high = number(evidence.auc_diff_high)
    if evidence.champion == PRIOR or high >= -max_drop:
        return None
    return (
        f"auc_not_worse: {number(evidence.auc):.4f} against {number(evidence.champion_auc):.4f} "
        f"(difference at most {high:+.4f}), must be at least {-max_drop:+.4f}"
    )


def scores_near_champion(evidence: Evidence, max_shift: float) -> Reason:
    """Candidate and champion score the same rows alike, as distributions. Not asked of `PRIOR`,
    nor of a model that was trained anew and has no parent.
    """
    if evidence.champion == PRIOR or evidence.parent is None:
        return None
    if number(evidence.score_shift) <= max_shift:
        return None
    return (
        f"scores_near_champion: log odds moved by {number(evidence.score_shift):.3f} on average, "
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
        if not number(each["logloss_diff_low"]) <= bound
    }
    if not worse:
        return None
    name, low = max(worse.items(), key=lambda each: number(each[1]))
    return (
        f"no_slice_collapses: {name} and {len(worse) - 1} more slices; its log loss rose by "
        f"{number(low):+.4f} at least, must be at most {bound:+.4f}"
    )


def importance_spread(evidence: Evidence, max_share: float) -> Reason:
    """No input explains nearly all that the candidate explains, and most of the label too: one
    that does may hold it.

    A single strong feature is common (an item that is clicked or not); one that leaves less than
    half of the label open is not.
    """
    if evidence.importance is None:
        return "importance_spread: not measured, must be"
    found = {name: number(value) for name, value in evidence.importance.items()}
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
        if most is not None and not number(found) <= most:
            return f"small_and_quick: {found} {what}, must be at most {most}"
    return None


def update_norm_usual(evidence: Evidence, max_growth: float) -> Reason:
    """The step changed the model about as much as the steps before it."""
    norm, usual = number(evidence.update_norm), number(evidence.update_norm_usual)
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
