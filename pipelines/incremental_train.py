"""Continue a line's champion over its newest window, through both gates.

Run it here: `python -m pipelines.incremental_train --line coupons`; write its YAML: `--compile`.
"""

from kfp import dsl

from pipelines.steps import gated_cycle


@dsl.pipeline(
    name="incremental-train",
    description="Continue a line's champion over its newest window, through both gates.",
)  # type: ignore[untyped-decorator]
def incremental_train(line: str, run: str = "") -> None:
    """Every step over the newest window, behind both gates."""
    gated_cycle("incremental", line, run)


if __name__ == "__main__":
    from pipelines import command

    command.main(incremental_train)
