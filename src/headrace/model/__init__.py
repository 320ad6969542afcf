"""The trainer core: one model, three families, exact incremental training.

Names resolve on first use (PEP 562), so that `headrace.model.delta`, which is NumPy only,
can be imported without paying for TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.model.delta import State

if TYPE_CHECKING:
    from headrace.model.model import LearnReport, Model

__all__ = ["LearnReport", "Model", "State"]


def __getattr__(name: str) -> Any:
    if name in ("LearnReport", "Model"):
        from headrace.model import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
