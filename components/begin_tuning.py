"""Plan a search for a better model over the line's declared space."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def begin_tuning(line: str, name: str) -> list[str]:
    """Returns the handles of the first rung's trials; a search of that name goes on."""
    from headrace import garbage

    garbage.seldom()
    from headrace import tune
    from headrace.records import new_run
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    handles = tune.begin(settings, find_line(settings, line), name or new_run())
    print(handles)  # noqa: T201
    return handles
