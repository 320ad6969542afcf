"""Measure a candidate and the champion on identical later rows."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def evaluate(  # noqa: PLR0917 - kfp passes them by name
    line: str,
    kind: str,
    cycle: str,
    version: str,
    figures: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    calibration: dsl.Output[dsl.HTML],
) -> str:
    """Stores the evidence with the version; returns the version that was measured."""
    from headrace import garbage

    garbage.seldom()
    from headrace import cycle as steps
    from headrace.evaluate import evaluate as measure
    from headrace.launch.shown import Shown
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    spec = find_line(settings, line)
    began = steps.resumed(cycle, kind, stage="evaluate", version=version)
    with steps.recorded(settings, spec, began):
        shown = Shown(f"{line} {version}", figures, roc, calibration)
        evidence = measure(settings, spec, version, shown=shown)
    print(evidence)  # noqa: T201
    return version
