"""Write the window features of an interval of a line's log as Parquet.

Run it here: `python -m pipelines.backfill_features --line coupons --start 2026-11-01
--end 2026-11-02`; write its YAML: `--compile`.
"""

from kfp import dsl

from components import backfill_features as component


@dsl.pipeline(
    name="backfill-features",
    description="Write the window features of an interval of a line's log.",
)  # type: ignore[untyped-decorator]
def backfill_features(line: str, start: str, end: str, engine: str = "local") -> None:
    """One step; what its arguments mean stands in the component."""
    written = component.backfill_features(line=line, start=start, end=end, engine=engine)
    written.set_caching_options(False)


if __name__ == "__main__":
    from pipelines import command

    command.main_of_errand(backfill_features)
