"""Stop the worse half of a search's trials early."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def halve_trials(line: str, trials: list[str]) -> list[str]:
    """Returns the handles of the next rung's trials."""
    from headrace import garbage

    garbage.seldom()
    from headrace import tune
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    kept = tune.halve(settings, find_line(settings, line), trials)
    print(kept)  # noqa: T201
    return kept
