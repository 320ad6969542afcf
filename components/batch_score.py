"""Score the rows of a file, or the impressions of an interval of the log."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def batch_score(  # noqa: PLR0917 - kfp passes them by name
    line: str,
    source: str = "",
    start: str = "",
    end: str = "",
    output: str = "",
    version: str = "champion",
    at_column: str = "",
    engine: str = "local",
) -> str:
    """Returns the path of the scores. `source` is a file; `start` and `end` are ISO 8601.

    Without `output` the scores of an interval go to a file of its name in the line's home.
    """
    from pathlib import Path

    from headrace import garbage

    garbage.seldom()
    from headrace.scoring.run import interval_of, score_rows
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    written = score_rows(
        settings,
        find_line(settings, line),
        Path(output) if output else None,
        source=Path(source) if source else None,
        interval=interval_of(start, end),
        version=version,
        at_column=at_column or None,
        engine=engine,
        wait_s=30,  # a night's run starts when the last second of its day is in no tick yet
    )
    print(written)  # noqa: T201
    return str(written.output)
