"""What a Kubeflow run shows of an evaluation: figures, the ROC curve, a page of the calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from headrace import metrics
from headrace.curves import calibration_page, roc


@dataclass(frozen=True)
class Shown:
    """Fills the output artifacts of the component `evaluate`; call it with labels and predictions.

    What the rows cannot give, such as a curve over one class, is left out.
    """

    title: str
    figures: Any  # kfp.dsl.Metrics
    curve: Any  # kfp.dsl.ClassificationMetrics
    page: Any  # kfp.dsl.HTML

    def __call__(self, labels: ArrayLike, predictions: ArrayLike) -> None:
        for name in ("log_loss", "auc", "calibration", "ks"):
            value = getattr(metrics, name)(labels, predictions)
            if not math.isnan(value):  # which JSON does not have
                self.figures.log_metric(name, round(value, 6))
        found = roc(labels, predictions)
        if found is not None:
            self.curve.log_roc_curve(
                found.false_positive_rate.tolist(),
                found.true_positive_rate.tolist(),
                found.threshold.tolist(),
            )
        path = Path(self.page.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(calibration_page(self.title, labels, predictions), encoding="utf-8")
