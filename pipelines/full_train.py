"""Retrain a line from scratch over its history, through both gates.

Run it here: `python -m pipelines.full_train --line coupons`; write its YAML: `--compile`.
"""

from kfp import dsl

from pipelines.steps import Power, gated_cycle


@dsl.pipeline(
    name="full-train",
    description="Retrain a line from scratch over its history, through both gates.",
)  # type: ignore[untyped-decorator]
def full_train(
    line: str,
    run: str = "",
    workers: int = 1,
    accelerator: str = "nvidia.com/gpu",
    accelerators: str = "0",
) -> None:
    """Every step from scratch, behind both gates.

    `workers` processes share each batch of the training; on a cluster its container asks for
    `accelerators` (digits: the cluster's driver reads a text) of the resource `accelerator`.
    """
    gated_cycle("full", line, run, Power(workers, accelerator, accelerators))


if __name__ == "__main__":
    from pipelines import command

    command.main(full_train)
