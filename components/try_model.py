"""Train and measure one trial of a search."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def try_model(line: str, trial: str) -> str:
    """Returns the trial's handle; what it measured lies beside the search's plan."""
    from headrace import garbage

    garbage.seldom()
    from headrace import tune
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    tried = tune.attempt(settings, find_line(settings, line), trial)
    print(tried)  # noqa: T201
    return tried
