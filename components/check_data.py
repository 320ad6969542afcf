"""Plan the next window of a line and put it through the data gate."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def check_data(line: str, kind: str, run: str) -> str:
    """Returns the cycle's handle, or `ended`: the cycle is over, and recorded.

    An empty `run` names the cycle here (runs that a cluster schedules by itself). One output
    only: kfp 2.17's local runner cannot see a named output in a condition.
    """
    from headrace import garbage

    garbage.seldom()
    from headrace import cycle
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    spec = find_line(settings, line)
    began = cycle.started(run or cycle.new_run(), kind)
    with cycle.recorded(settings, spec, began):
        checked = cycle.begin(settings, spec, began)
    print(checked)  # noqa: T201
    return cycle.handle(checked) if checked.stage == "train" else "ended"
