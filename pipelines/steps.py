"""The steps that both training pipelines take, one after another."""

from kfp import dsl

from components.check_data import check_data
from components.evaluate import evaluate
from components.promote import promote
from components.train import train

GPU = "nvidia.com/gpu"


def gated_cycle(
    kind: str, line: str, run: str, workers: int | None = None, accelerators: int = 0
) -> None:
    """Check data, train, evaluate, promote; to be called inside a pipeline.

    `workers` is the pipeline's parameter, where it has one. The container of the training asks
    for so many `accelerators`: a number, as kfp 2.17's local runner finds no parameter there.

    A window that the data gate refuses ends the pipeline: nothing is trained. No step is cached:
    the same arguments mean new data a minute later.
    """
    checked = check_data(line=line, kind=kind, run=run).set_caching_options(False)
    with dsl.If(checked.output != "ended"):
        cycle = checked.output
        shared = {} if workers is None else {"workers": workers}
        trained = train(line=line, kind=kind, cycle=cycle, **shared)
        if accelerators:
            trained.set_accelerator_type(GPU).set_accelerator_limit(accelerators)
        trained.set_caching_options(False)
        measured = evaluate(line=line, kind=kind, cycle=cycle, version=trained.output)
        measured.set_caching_options(False)
        promoted = promote(line=line, kind=kind, cycle=cycle, version=measured.outputs["Output"])
        promoted.set_caching_options(False)
