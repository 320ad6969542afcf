"""What is known of a candidate when it is judged, as it is stored with the version. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

PRIOR: Final = "prior"
"""Stands for the champion while a line has none: the constant rate of the training rows."""


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
        return number(self.candidate_logloss) - number(self.champion_logloss)

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


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_ready(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> float:
    """The figure, NaN where it is missing."""
    return float("nan") if value is None else float(value)
