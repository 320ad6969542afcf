"""Evaluate a candidate and the champion on identical later rows (progressive validation).

Rows come from ticks after everything that either has learned, so each prediction is made
before its label was seen. The evidence is stored with the candidate; `promote` judges it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import metrics, parity, quality, recent, rules, suspicion, turns
from headrace.declaration import LineSpec
from headrace.events import served_schema
from headrace.gates import PRIOR, Evidence, TaskEvidence
from headrace.labels.revisions import conversions_settled, unsettled
from headrace.line import LineStore, Version
from headrace.sample import head_tick, read_samples
from headrace.settings import Settings
from headrace.train import quarantined, require_same_code

PARITY_ROWS: Final = 2_000
PROMOTED_S: Final = 60.0
"""How long after its wait for rows a full candidate has to be judged; a learner holds till then."""
_POLL_S: Final = 0.25

Labels = NDArray[np.int8]
Floats = NDArray[np.float64]
Predicted = dict[str, Floats]  # by task, row for row


@dataclass(frozen=True)
class _Later:
    """Evaluation rows: the newest revision of impressions first seen in `[from, to)` ticks."""

    from_tick: int
    to_tick: int
    rows: pa.Table


STEP_S: Final = 1.0
"""Longer than what is left of a learner's step that had begun before it was told to hold."""


def evaluate(
    settings: Settings,
    spec: LineSpec,
    candidate: str,
    wait_s: float = 30.0,
    shown: Callable[[Labels, Floats], None] | None = None,
) -> Evidence:
    """Measure the candidate against the champion, store the evidence and return it.

    `shown` gets the labels of the later rows and the candidate's click probabilities.

    Waits up to `wait_s` until `gates.model.min_rows` later rows exist; with fewer, the evidence
    says so and the gate rejects. Without a champion the rival is the constant label rate of the
    candidate's training rows.
    """
    from headrace.model import Model

    store = LineStore(settings.line_store_url(spec.line), spec.line)
    version, state = store.load(candidate)
    require_same_code(spec, version)
    model = Model(spec.model, spec.seed, conversion=spec.converts, blank=True)
    model.load_state(state)
    finite = model.is_finite()
    home = settings.line_home(spec.line)
    if version.parent is None and turns.alive(home):  # else the champion moves while we compare
        turns.hold(home, f"{candidate} is compared with the champion", wait_s + PROMOTED_S)
        time.sleep(STEP_S)
    champion = store.champion()
    rival_version = None if champion is None else store.get(champion.version)
    start = max(version.to_tick, 0 if rival_version is None else rival_version.to_tick)
    later = _wait_for_rows(settings, spec, start, wait_s)
    began = time.perf_counter()
    predicted = model.predict_tasks(later.rows)
    took_us = 1e6 * (time.perf_counter() - began) / max(later.rows.num_rows, 1)
    measured: dict[str, Any] = {
        "importance": suspicion.importance(spec, later.rows, model.predict) if finite else None,
        "predict_us": took_us,
        "bytes": version.size,
    }
    if shown is not None:
        shown(later.rows["label"].to_numpy(), predicted["click"])
    if rival_version is None:
        rival = _prior(spec, version, later.rows.num_rows)
    else:
        require_same_code(spec, rival_version)
        model.load_state(store.load(rival_version.version)[1])
        rival = model.predict_tasks(later.rows)
    evidence = _evidence(
        settings,
        spec,
        version,
        rival_version,
        finite=finite,
        later=later,
        predicted=predicted,
        rival=rival,
        measured=measured,
    )
    store.put_evidence(candidate, evidence.to_dict())
    return evidence


def first_seen(samples: pa.Table) -> pa.Table:
    """Newest revision of each impression whose first sample (revision 0) is in `samples`.

    A correction of an impression of an earlier window is left out: alone it would be a positive
    without its peers, the negatives that were never corrected. Stream order is kept.
    """
    offsets = samples["impression_offset"].to_numpy()
    known = offsets[samples["revision"].to_numpy() == 0]
    _, last = np.unique(offsets[::-1], return_index=True)
    kept = np.sort(offsets.size - 1 - last)
    return samples.take(pa.array(kept[np.isin(offsets[kept], known)]))


def _wait_for_rows(settings: Settings, spec: LineSpec, start: int, wait_s: float) -> _Later:
    home = settings.line_home(spec.line)
    deadline = time.monotonic() + wait_s
    seen_head = -1
    while True:
        head = max(head_tick(home), start)
        if head != seen_head:
            seen_head = head
            exclude = quarantined(settings, spec, start, head)
            samples = read_samples(spec, home, start, head, exclude=exclude)
            rows = first_seen(samples.filter(pa.array(~unsettled(spec, samples))))
        if rows.num_rows >= spec.gates.model.min_rows or time.monotonic() >= deadline:
            return _Later(start, head, rows)
        time.sleep(_POLL_S)


def _prior(spec: LineSpec, version: Version, rows: int) -> Predicted:
    """What someone would answer who knew nothing but the rates of the training rows."""
    rates = version.rates(conversion=spec.converts)
    return {task: np.full(rows, rate) for task, rate in rates.items()}


def _tasks(
    spec: LineSpec, rows: pa.Table, predicted: Predicted, rival: Predicted
) -> dict[str, TaskEvidence] | None:
    """Figures of the tasks beside the click, over the rows whose conversion is settled."""
    if not spec.converts:
        return None
    settled = conversions_settled(spec, rows)
    clicked = settled & (rows["label"].to_numpy() > 0)
    converted = rows["conversion"].to_numpy()
    return {
        task: _of_task(spec, converted[of], predicted[task][of], rival[task][of])[0]
        for task, of in (("click_and_conversion", settled), ("conversion", clicked))
    }


def _of_task(
    spec: LineSpec, labels: Labels, predicted: Floats, rival: Floats
) -> tuple[TaskEvidence, Floats]:
    """Figures of a task, and the loss of each row in nats (n,)."""
    loss, rival_loss = metrics.row_losses(labels, predicted), metrics.row_losses(labels, rival)
    _, low, high = metrics.paired_bootstrap(
        loss, rival_loss, spec.gates.model.confidence, spec.seed
    )
    calibration_low, calibration_high = metrics.calibration_interval(labels, predicted)
    measured = TaskEvidence(
        rows=labels.size,
        positives=int(labels.sum()),
        candidate_logloss=metrics.mean_loss(loss),
        champion_logloss=metrics.mean_loss(rival_loss),
        logloss_diff_low=low,
        logloss_diff_high=high,
        calibration=metrics.calibration(labels, predicted),
        calibration_low=calibration_low,
        calibration_high=calibration_high,
        auc=metrics.auc(labels, predicted),
    )
    return measured, loss


def _evidence(
    settings: Settings,
    spec: LineSpec,
    version: Version,
    champion: Version | None,
    *,
    finite: bool,
    later: _Later,
    predicted: Predicted,
    rival: Predicted,
    measured: dict[str, Any],
) -> Evidence:
    found = figures(spec, later.rows, predicted, rival)
    if not _sound(settings, spec, later):
        found["eval_rows_plausible"] = False
    served = served_rows(spec, later.rows, PARITY_ROWS)
    proof = parity.check(settings, spec, served, history="parts", shown=1)
    home = settings.line_home(spec.line)
    return Evidence(
        line=spec.line,
        candidate=version.version,
        parent=version.parent,
        champion=PRIOR if champion is None else champion.version,
        train_from_tick=version.from_tick,
        train_to_tick=version.to_tick,
        champion_to_tick=0 if champion is None else champion.to_tick,
        eval_from_tick=later.from_tick,
        eval_to_tick=later.to_tick,
        **found,
        **measured,
        finite=finite,
        parity_rows=proof.rows,
        parity_expected=served.num_rows,
        parity_mismatches=proof.mismatches,
        parity_causes=proof.by_cause,
        parity_history=proof.history,
        data_passed=quality.passed(home, version.from_tick, version.to_tick, version.excluded),
        made_at_us=time.time_ns() // 1_000,
    )


def _sound(settings: Settings, spec: LineSpec, later: _Later) -> bool:
    """Whether the data gate would take the evaluation rows: spoiled ones judge nobody."""
    if later.rows.num_rows < spec.gates.data.min_rows:
        return True  # too few for it; the model gate has its own bound
    home = settings.line_home(spec.line)
    measured = recent.figures(spec, home, later.from_tick, later.to_tick, later.rows)
    place = later.rows.schema.get_field_index("revision")
    first = pa.array(np.zeros(later.rows.num_rows, np.int32))  # each stands for its impression
    rows = later.rows.set_column(place, later.rows.schema.field(place), first)
    every = np.ones(rows.num_rows, np.bool_)
    frame = rules.frame(spec, rows, every, measured)
    return not rules.broken(frame, rules.declared(spec, measured))


def _standard_error(loss: NDArray[np.float64]) -> float | None:
    return float(loss.std(ddof=1) / loss.size**0.5) if loss.size > 1 else None


def _deciles(scores: NDArray[np.float64]) -> list[float] | None:
    if not np.isfinite(scores).all() or not scores.size:
        return None
    return [float(value) for value in np.quantile(scores, np.linspace(0.1, 0.9, 9))]


def figures(
    spec: LineSpec, rows: pa.Table, predicted: Predicted, rival: Predicted
) -> dict[str, Any]:
    """How a candidate's predictions and its rival's fit the labels of `rows`: by name, fields of
    `gates.Evidence`.

    The rows are plausible where each stretch may have a label rate that the data gate takes.
    """
    labels, gate = rows["label"].to_numpy(), spec.gates.data
    own, other = predicted["click"], rival["click"]
    measured, loss = _of_task(spec, labels, own, other)
    click = asdict(measured)
    del click["positives"]
    odd = metrics.implausible_stretches(labels, gate.label_rate, gate.min_rows)
    confidence = spec.gates.model.confidence
    _, auc_low, auc_high = metrics.auc_difference(labels, own, other, confidence)
    return click | {
        "champion_auc": metrics.auc(labels, other),
        "auc_diff_low": auc_low,
        "auc_diff_high": auc_high,
        "ks": metrics.ks(labels, own),
        "score_shift": suspicion.shift(own, other),
        "slices": suspicion.slices(spec, rows, own, other),
        "eval_rows_plausible": not odd,
        "candidate_logloss_error": _standard_error(loss),
        "score_deciles": _deciles(own),
        "tasks": _tasks(spec, rows, predicted, rival),
    }


def served_rows(spec: LineSpec, rows: pa.Table, most: int) -> pa.Table:
    """Served rows (`served_schema`) behind samples, evenly thinned to `most`; bootstrapped ones
    were computed and never served, so they are left out.
    """
    served = rows.select(served_schema(spec).names)
    served = served.filter(pc.not_equal(served["version"], "bootstrap"))
    if served.num_rows <= most:
        return served
    return served.take(np.linspace(0, served.num_rows - 1, most).astype(np.int64))
