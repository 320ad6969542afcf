"""Write the report of a line over an interval; a run shows it as its page.

Run it here: `python -m pipelines.write_report --line coupons --start 2026-11-01 --end 2026-11-02`;
write its YAML: `--compile`.
"""

from kfp import dsl

from components import write_report as component


@dsl.pipeline(
    name="write-report",
    description="Write the report of a line over an interval.",
)  # type: ignore[untyped-decorator]
def write_report(line: str, start: str, end: str) -> None:
    """One step; what its arguments mean stands in the component."""
    component.write_report(line=line, start=start, end=end).set_caching_options(False)


if __name__ == "__main__":
    from pipelines import command

    command.main_of_errand(write_report)
