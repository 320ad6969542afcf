"""Continue a line's champion over its newest window, through both gates.

Run it here: `python -m pipelines.incremental_train --line coupons`; write its YAML: `--compile`.
"""

from kfp import dsl

from components.check_data import check_data
from components.evaluate import evaluate
from components.promote import promote
from components.train import train

KIND = "incremental"


@dsl.pipeline(
    name="incremental-train",
    description="Continue a line's champion over its newest window, through both gates.",
)  # type: ignore[untyped-decorator]
def incremental_train(line: str, run: str = "") -> None:
    """A window that the data gate refuses ends the pipeline: nothing is trained.

    No step is cached: the same arguments mean new data a minute later.
    """
    checked = check_data(line=line, kind=KIND, run=run).set_caching_options(False)
    with dsl.If(checked.output != "ended"):
        cycle = checked.output
        trained = train(line=line, kind=KIND, cycle=cycle).set_caching_options(False)
        measured = evaluate(line=line, kind=KIND, cycle=cycle, version=trained.output)
        measured.set_caching_options(False)
        promoted = promote(line=line, kind=KIND, cycle=cycle, version=measured.output)
        promoted.set_caching_options(False)


if __name__ == "__main__":
    from pipelines import command

    command.main(incremental_train)
