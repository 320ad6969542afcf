"""Retrain a line from scratch over its history, through both gates.

Run it here: `python -m pipelines.full_train --line coupons`; write its YAML: `--compile`.
"""

from kfp import dsl

from pipelines.steps import gated_cycle


@dsl.pipeline(
    name="full-train",
    description="Retrain a line from scratch over its history, through both gates.",
)  # type: ignore[untyped-decorator]
def full_train(line: str, run: str = "", workers: int = 1) -> None:
    """Every step from scratch, behind both gates; `workers` processes share the training."""
    gated_cycle("full", line, run, workers)


if __name__ == "__main__":
    from pipelines import command

    command.main(full_train)
