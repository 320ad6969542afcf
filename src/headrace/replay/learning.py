"""A replay policy's model: it learns in gated steps and can take a step back."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import LineSpec
from headrace.labels.revisions import thin_negatives, unsettled

if TYPE_CHECKING:
    from headrace.model import Model

_PROBE_ROWS: Final = 256


@dataclass
class GateCounts:
    """What the gates let through; refused steps are quarantined: never learned."""

    steps: int = 0
    refused: int = 0
    refused_rows: int = 0
    suite_checks: int = 0
    suite_disagreements: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return asdict(self) | {"reasons": dict(self.reasons)}


class GatedLearner:
    """A model that learns in gated steps and can take a step back."""

    def __init__(self, spec: LineSpec) -> None:
        from headrace.model import Model

        self.spec = spec
        self.model: Model = Model(spec.model, spec.seed, spec.label.delayed_feedback)
        self.gates = GateCounts()
        self._base = self.model.state()
        self._since_base: list[pa.Table] = []

    def learn(self, samples: pa.Table) -> None:
        """Learn a window, unless the data gate refuses it or the model is not finite afterwards."""
        self.gates.steps += 1
        reasons = window_reasons(self.spec, samples)
        if not reasons:
            samples = thin_negatives(self.spec, samples)
            report = self.model.learn(samples)
            probe = self.model.predict(samples.slice(0, _PROBE_ROWS))
            if np.isfinite(report.loss) and np.isfinite(probe).all():
                self._since_base.append(samples)
                return
            reasons = ["predictions are not finite"]
            self._back()
        self.gates.refused += 1
        self.gates.refused_rows += samples.num_rows
        self.gates.reasons.update(reasons)

    def settle(self) -> None:
        """Make the present state the one that a refused step returns to."""
        if self._since_base:
            if self.model.is_finite():
                self._base, self._since_base = self.model.state(), []
            else:
                last = self._since_base.pop()
                self.gates.refused += 1
                self.gates.refused_rows += last.num_rows
                self.gates.reasons.update(["weights are not finite"])
                self._back()

    def _back(self) -> None:
        self.model.load_state(self._base)
        for samples in self._since_base:
            self.model.learn(samples)


def window_reasons(spec: LineSpec, samples: pa.Table) -> list[str]:
    """The data gate's claims on label rate and missing inputs, cheap enough for every step.

    The full suite (`quality.check`) runs on a sample of the windows and must agree.
    """
    gate, reasons = spec.gates.data, []
    settled = samples.filter(pa.array(~unsettled(spec, samples)))
    first = settled.filter(pc.equal(settled["revision"], 0))
    # an impression's newest label counts, so a correction in the same window replaces it
    corrected = samples.filter(pc.equal(samples["revision"], 1))["impression_id"]
    label = np.asarray(first["label"].to_numpy(), dtype=np.float64)
    if len(corrected):
        hit = pc.is_in(first["impression_id"], value_set=corrected.combine_chunks())
        label = np.where(np.asarray(hit.to_numpy(zero_copy_only=False)), 1.0, label)
    low, high = gate.label_rate
    if label.size and not low <= label.mean() <= high:
        reasons.append("label rate out of bounds")
    for name in spec.model.categorical:
        if float(np.mean(samples[name].to_numpy() == -1)) > gate.max_missing_share:
            reasons.append(f"missing share of {name} too high")
    for name in spec.model.numeric:
        if float(np.mean(np.isnan(samples[name].to_numpy()))) > gate.max_missing_share:
            reasons.append(f"missing share of {name} too high")
    return reasons
