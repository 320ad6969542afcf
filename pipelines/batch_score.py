"""Score the rows of a file, or the impressions of an interval of the log, with a version of a line.

Run it here: `python -m pipelines.batch_score --line coupons --start 2026-11-01 --end 2026-11-02`;
write its YAML: `--compile`.
"""

from kfp import dsl

from components import batch_score as component


@dsl.pipeline(
    name="batch-score",
    description="Score a file of rows, or an interval of the log, with a version of a line.",
)  # type: ignore[untyped-decorator]
def batch_score(  # noqa: PLR0917 - kfp passes them by name
    line: str,
    source: str = "",
    start: str = "",
    end: str = "",
    output: str = "",
    version: str = "champion",
    at_column: str = "",
    engine: str = "local",
) -> None:
    """One step; what its arguments mean stands in the component."""
    scored = component.batch_score(
        line=line,
        source=source,
        start=start,
        end=end,
        output=output,
        version=version,
        at_column=at_column,
        engine=engine,
    )
    scored.set_caching_options(False)


if __name__ == "__main__":
    from pipelines import command

    command.main_of_errand(batch_score)
