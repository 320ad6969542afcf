"""Command line of a pipeline module: compile its YAML, or run it for a line."""

import argparse
import sys
from pathlib import Path
from typing import Any

COMPILED = Path(__file__).resolve().parent / "compiled"


def compile_to(pipeline: Any, path: Path) -> None:
    """Write the pipeline's YAML, byte-stable but for `sdkVersion`."""
    from kfp import compiler

    compiler.Compiler().compile(pipeline, str(path))


def main(pipeline: Any) -> None:
    """`--compile` writes `compiled/<name>.yaml`; `--line NAME` runs that YAML."""
    name = pipeline.name.replace("-", "_")
    given = _parser(name).parse_args()
    if given.compile:
        compile_to(pipeline, COMPILED / f"{name}.yaml")
        return
    from headrace.launch import run_pipeline
    from headrace.settings import load_settings

    result = run_pipeline(load_settings(), name, given.line)
    sys.stdout.write(f"{result}\n")
    sys.exit(0 if result.outcome in ("promoted", "idle", "elsewhere") else 1)


def main_of_errand(pipeline: Any) -> None:
    """The same for a pipeline that is no cycle; its arguments are options beside `--line`."""
    from headrace.launch.errands import ERRANDS, run_errand

    name = pipeline.name.replace("-", "_")
    parser = _parser(name)
    for option in ERRANDS[name]:
        parser.add_argument(f"--{option.replace('_', '-')}", help="see the component")
    given = vars(parser.parse_args())
    if given.pop("compile"):
        compile_to(pipeline, COMPILED / f"{name}.yaml")
        return
    from headrace.settings import load_settings

    line = given.pop("line")
    options = {option: value for option, value in given.items() if value is not None}
    sys.stdout.write(f"{run_errand(load_settings(), name, line, options)}\n")


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.{name}")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--compile", action="store_true", help=f"write compiled/{name}.yaml")
    what.add_argument("--line", help="run for this line, here or on HEADRACE_KFP_ENDPOINT")
    return parser
