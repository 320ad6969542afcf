"""Judge the evidence of a candidate and move the champion if it suffices."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def promote(line: str, kind: str, cycle: str, version: str) -> str:
    """Returns promoted or rejected; the reasons stand in the cycle's record and the verdict."""
    from headrace import garbage

    garbage.seldom()
    from headrace import cycle as steps
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    spec = find_line(settings, line)
    began = steps.resumed(cycle, kind, stage="promote", version=version)
    with steps.recorded(settings, spec, began):
        ended = steps.conclude(settings, spec, began, version)
    print(ended)  # noqa: T201
    return str(ended.outcome)
