"""Write the window features of an interval of the log, as they were known at each impression."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def backfill_features(line: str, start: str, end: str, engine: str = "local") -> str:
    """Returns the folder of the parts. `start` and `end` are ISO 8601; both engines agree."""
    from headrace import garbage

    garbage.seldom()
    from headrace.backfill.interval import backfill
    from headrace.events import moment
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    spec, home = find_line(settings, line), settings.line_home(line)
    interval = (moment("start", start), moment("end", end))
    written = backfill(
        spec, home, home / "backfill", interval, engine="spark" if engine == "spark" else "local"
    )
    print(written)  # noqa: T201
    return str(written.folder)
