"""The steps that both training pipelines take, one after another."""

from dataclasses import dataclass

from kfp import dsl

from components.check_data import check_data
from components.evaluate import evaluate
from components.promote import promote
from components.train import train


@dataclass(frozen=True)
class Power:
    """What a training runs on: processes, and accelerators of its container ("0": none)."""

    workers: int
    accelerator: str
    accelerators: str


def gated_cycle(kind: str, line: str, run: str, power: Power | None = None) -> None:
    """Check data, train, evaluate, promote; to be called inside a pipeline.

    A window that the data gate refuses ends the pipeline: nothing is trained. No step is cached:
    the same arguments mean new data a minute later.
    """
    checked = check_data(line=line, kind=kind, run=run).set_caching_options(False)
    with dsl.If(checked.output != "ended"):
        cycle = checked.output
        if power is None:
            trained = train(line=line, kind=kind, cycle=cycle)
        else:
            trained = train(line=line, kind=kind, cycle=cycle, workers=power.workers)
            trained.set_accelerator_type(power.accelerator)
            trained.set_accelerator_limit(power.accelerators)
        trained.set_caching_options(False)
        measured = evaluate(line=line, kind=kind, cycle=cycle, version=trained.output)
        measured.set_caching_options(False)
        promoted = promote(line=line, kind=kind, cycle=cycle, version=measured.output)
        promoted.set_caching_options(False)
