"""Let the best trial of a search become a challenger, if it is better than the model as it is."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def conclude_tuning(line: str, trials: list[str]) -> str:
    """Returns the challenger's version, or `none`."""
    from headrace import garbage

    garbage.seldom()
    from headrace import tune
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    found = tune.conclude(settings, find_line(settings, line), trials)
    print(found)  # noqa: T201
    return found.version or "none"
