"""Write the report of a line over an interval, and show it with the run."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def write_report(line: str, start: str, end: str, report: dsl.Output[dsl.HTML]) -> str:
    """Returns the page's path in the line's home. `start` and `end` are ISO 8601."""
    import shutil

    from headrace import garbage

    garbage.seldom()
    from headrace.events import moment
    from headrace.report.place import report_path
    from headrace.report.written import write
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    spec, interval = find_line(settings, line), (moment("start", start), moment("end", end))
    path = report_path(settings, line, *interval)
    told = write(settings, spec, *interval, path)
    shutil.copyfile(path, report.path)
    print(path, told["quality"])  # noqa: T201
    return str(path)
