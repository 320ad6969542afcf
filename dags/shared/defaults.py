"""What every DAG of a line says alike: how tasks are tried again, who is told, its tags."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from dags.shared.notify import Alert
from headrace.declaration import LineSpec
from headrace.settings import TRAINING_POOL, load_settings

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


def heavy() -> dict[str, Any]:
    """What a training from scratch says beside that: it waits for a slot of their pool.

    So the trainings of all lines follow one another on this machine. Incremental ones, which take
    seconds, wait for nobody; on a cluster the cluster decides.
    """
    return {} if load_settings().kfp_endpoint else {"pool": TRAINING_POOL}


def tags_of(spec: LineSpec) -> list[str]:
    """Every DAG carries the name of its line beside the project's."""
    return ["headrace", spec.line]
