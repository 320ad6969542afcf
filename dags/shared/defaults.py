"""What every DAG of a line says alike: how tasks are tried again, who is told, its tags."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from dags.shared.notify import Alert
from headrace.declaration import LineSpec

RETRIES: Final = 2
_LONGEST_WAIT: Final = timedelta(minutes=10)


def task_defaults(first_retry_s: float = 5) -> dict[str, Any]:
    """`default_args`: two retries, each waiting twice as long as the one before, then the alarm."""
    return {
        "retries": RETRIES,
        "retry_delay": timedelta(seconds=first_retry_s),
        "retry_exponential_backoff": True,
        "max_retry_delay": _LONGEST_WAIT,
        "on_failure_callback": [Alert()],
    }


def tags_of(spec: LineSpec) -> list[str]:
    """Every DAG carries the name of its line beside the project's."""
    return ["headrace", spec.line]
