"""Train a candidate over a window that passed the data gate."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)  # type: ignore[untyped-decorator]
def train(line: str, kind: str, cycle: str, workers: int = 1) -> str:
    """Returns the id of the published version. A full training is shared by `workers` processes."""
    from headrace import garbage

    garbage.seldom()
    from headrace import cycle as steps
    from headrace.settings import find_line, load_settings

    settings = load_settings()
    spec = find_line(settings, line)
    began = steps.resumed(cycle, kind, stage="train")
    with steps.recorded(settings, spec, began):
        trained = steps.learn(settings, spec, began, workers=int(workers))
    print(trained)  # noqa: T201
    return str(trained.version)
