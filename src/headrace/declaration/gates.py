"""What is asked of a window before it is learned, and of a candidate before it serves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headrace.declaration.base import Declared, DurationUs


class ExpectationSpec(Declared):
    """One demand on a column of a window, in place of the generated one of that kind, or beside
    all. `drop`: the generated one is not asked.
    """

    column: str = ""
    kind: Literal["rows", "present", "one_of", "unique", "mean", "between"]
    low: float | None = None
    high: float | None = None
    values: tuple[int, ...] = ()
    drop: bool = False


class DataGateSpec(Declared):
    """What a window of samples must look like to be learned.

    `reference_rows` of the newest accepted rows before it are its reference. `max_drift`: of each
    input and of the label delay, as population stability index. `max_information`: share of the
    label's entropy that one input may tell. `key_label_rate`: categorical
    input to the label rate that no single id of it may surely exceed. `max_lost_labels`: share of
    engagements that found no impression in time. `max_misranked`: share of pairs of a positive and
    a negative row that the served scores surely rank the wrong way. `expectations` may also stand
    in the files `<line>/expectations/*.yaml` beside the line's.
    """

    min_rows: int = Field(50, ge=1)
    label_rate: tuple[float, float] = (0.0, 1.0)
    max_missing_share: float = Field(0.5, ge=0, le=1)
    reference_rows: int = Field(10_000, ge=0)
    max_drift: float = Field(1.0, gt=0)
    max_information: float = Field(0.3, gt=0, le=1)
    max_lost_labels: float = Field(0.5, ge=0, le=1)
    max_misranked: float = Field(1.0, gt=0, le=1)
    key_label_rate: dict[str, float] = Field(default_factory=dict)
    expectations: tuple[ExpectationSpec, ...] = ()


class ModelGateSpec(Declared):
    """What a candidate must show against the champion on identical later rows.

    `max_update_growth`: of a learner's step, its norm over the median of the steps before.
    `max_score_shift`: of the distribution of scores from the champion's, in log odds.
    `slices`: categorical inputs whose commonest values are judged by themselves.
    `max_importance`: share of what all inputs explain that one may explain alone.
    `max_predict_time`, `max_bytes`: of a row and of the version, asked only where declared.
    """

    min_rows: int = Field(100, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_logloss_increase: float = Field(0.01, ge=0)
    calibration: tuple[float, float] = (0.5, 2.0)
    min_conversions: int = Field(20, ge=1)
    max_evidence_age: DurationUs = 600_000_000
    max_update_growth: float = Field(10.0, gt=1)
    max_auc_drop: float = Field(0.02, ge=0)
    max_score_shift: float = Field(1.0, gt=0)
    slices: tuple[str, ...] = ()
    max_slice_logloss_increase: float = Field(0.1, ge=0)
    max_importance: float = Field(0.9, gt=0, le=1)
    max_predict_time: DurationUs | None = None
    max_bytes: int | None = Field(None, ge=1)


class GateSpec(Declared):
    """Both gates fail closed."""

    data: DataGateSpec = DataGateSpec()
    model: ModelGateSpec = ModelGateSpec()
