"""The steps that both training pipelines take, one after another."""

from kfp import dsl

from components.check_data import check_data
from components.evaluate import evaluate
from components.promote import promote
from components.train import train


def gated_cycle(kind: str, line: str, run: str) -> None:
    """Check data, train, evaluate, promote; to be called inside a pipeline.

    A window that the data gate refuses ends the pipeline: nothing is trained. No step is cached:
    the same arguments mean new data a minute later.
    """
    checked = check_data(line=line, kind=kind, run=run).set_caching_options(False)
    with dsl.If(checked.output != "ended"):
        cycle = checked.output
        trained = train(line=line, kind=kind, cycle=cycle).set_caching_options(False)
        measured = evaluate(line=line, kind=kind, cycle=cycle, version=trained.output)
        measured.set_caching_options(False)
        promoted = promote(line=line, kind=kind, cycle=cycle, version=measured.output)
        promoted.set_caching_options(False)
