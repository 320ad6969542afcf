"""Search a line's declared space for a better model; the best becomes a challenger.

Run it here: `python -m pipelines.tune --line coupons`; write its YAML: `--compile`.
"""

from kfp import dsl

from components.begin_tuning import begin_tuning
from components.conclude_tuning import conclude_tuning
from components.halve_trials import halve_trials
from components.try_model import try_model

AT_ONCE = 4


@dsl.pipeline(
    name="tune",
    description="Search a line's declared space for a better model by successive halving.",
)  # type: ignore[untyped-decorator]
def tune(line: str, name: str = "") -> None:
    """Three rungs of trials side by side, each on more history; the worse half stops early."""
    begun = begin_tuning(line=line, name=name).set_caching_options(False)
    with dsl.ParallelFor(items=begun.output, parallelism=AT_ONCE) as trial:
        first = try_model(line=line, trial=trial).set_caching_options(False)
    better = halve_trials(line=line, trials=dsl.Collected(first.output)).set_caching_options(False)
    with dsl.ParallelFor(items=better.output, parallelism=AT_ONCE) as trial:
        second = try_model(line=line, trial=trial).set_caching_options(False)
    best = halve_trials(line=line, trials=dsl.Collected(second.output)).set_caching_options(False)
    with dsl.ParallelFor(items=best.output, parallelism=AT_ONCE) as trial:
        third = try_model(line=line, trial=trial).set_caching_options(False)
    conclude_tuning(line=line, trials=dsl.Collected(third.output)).set_caching_options(False)


if __name__ == "__main__":
    from pipelines import command

    command.main_of_errand(tune)
