"""Retrain a line from scratch as `full_train` does, in a container that has a GPU.

Run it here: `python -m pipelines.full_train_gpu --line coupons`; write its YAML: `--compile`.
"""

from kfp import dsl

from pipelines.steps import gated_cycle


@dsl.pipeline(
    name="full-train-gpu",
    description="Retrain a line from scratch over its history on a GPU, through both gates.",
)  # type: ignore[untyped-decorator]
def full_train_gpu(line: str, run: str = "", workers: int = 1) -> None:
    """Every step from scratch, behind both gates; the training's container asks for one GPU."""
    gated_cycle("full", line, run, workers, accelerators=1)


if __name__ == "__main__":
    from pipelines import command

    command.main(full_train_gpu)
