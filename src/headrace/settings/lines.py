"""Lines from their YAML: a `LineSpec`, or an error that names the key, the value and the remedy."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, shortened
from headrace.settings.values import Settings


def load_line(path: Path) -> LineSpec:
    """Parse one line's YAML. Raises `DeclarationError` listing every wrong key.

    The lists in `<name>/expectations/*.yaml` beside it join `gates.data.expectations`.
    """
    raw = _mapping(path)
    for file in sorted((path.with_suffix("") / "expectations").glob("*.yaml")):
        own = _parsed(file)
        if not isinstance(own, list):
            raise DeclarationError(f"{file}: not a list of expectations; start each with `- `")
        gates = raw.setdefault("gates", {})
        data = gates.setdefault("data", {}) if isinstance(gates, dict) else None
        if not isinstance(data, dict):
            raise DeclarationError(f"{path}: gates.data: not a mapping; correct it")
        data["expectations"] = [*data.get("expectations", []), *own]
    try:
        return LineSpec.model_validate(raw)
    except ValidationError as problem:
        raise DeclarationError(_explain(path, problem)) from None


def _mapping(path: Path) -> dict[str, object]:
    raw = _parsed(path)
    if not isinstance(raw, dict):
        raise DeclarationError(f"{path}: a line is a mapping of keys; start with `line: <name>`")
    return raw


def _parsed(path: Path) -> object:
    """What a YAML file holds."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeclarationError(f"{path}: no such line file; {_known(path.parent)}") from None
    except IsADirectoryError:
        raise DeclarationError(
            f"{path} is a folder; give the YAML file of a line; {_known(path)}"
        ) from None
    except UnicodeDecodeError as problem:
        raise DeclarationError(
            f"{path}: not text in UTF-8 (byte {problem.start} is {problem.object[problem.start]:#x}"
            "); save it as UTF-8"
        ) from None
    except yaml.YAMLError as problem:
        raise DeclarationError(f"{path}: {_where(problem)}; correct it") from None
    except RecursionError:
        raise DeclarationError(f"{path}: nested too deeply for a line; correct it") from None
    except OSError as problem:
        raise DeclarationError(
            f"{path}: not readable: {problem.strerror}; give the YAML file of a line"
        ) from None


def load_lines(folder: Path) -> dict[str, LineSpec]:
    """All lines of a folder by name. Raises `DeclarationError` for a name used twice."""
    lines: dict[str, LineSpec] = {}
    for path in sorted(folder.glob("*.yaml")):
        spec = load_line(path)
        if spec.line in lines:
            raise DeclarationError(f"{path}: line {spec.line!r} is declared twice; rename one")
        lines[spec.line] = spec
    return lines


def find_line(settings: Settings, line: str) -> LineSpec:
    """The declared line of that name. Raises `DeclarationError` naming the known ones."""
    lines = load_lines(settings.lines_dir)
    if line not in lines:
        known = ", ".join(lines) or "none"
        raise DeclarationError(
            f"line {line!r} is not declared in {settings.lines_dir}; known: {known}"
        )
    return lines[line]


def _known(folder: Path) -> str:
    return f"there are: {', '.join(sorted(p.name for p in folder.glob('*.yaml'))) or 'none'}"


def _where(problem: yaml.YAMLError) -> str:
    if not isinstance(problem, yaml.MarkedYAMLError) or problem.problem_mark is None:
        return f"not readable as YAML: {' '.join(str(problem).split())}"
    mark = problem.problem_mark
    what = problem.problem or problem.context
    return f"line {mark.line + 1}, column {mark.column + 1} is not readable as YAML: {what}"


def _explain(path: Path, problem: ValidationError) -> str:
    parts = []
    for error in problem.errors():
        where = ".".join(str(part) for part in error["loc"]) or "line"
        if error["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown key; remove it or correct its spelling")
        else:
            value = error.get("input")
            shown = "" if isinstance(value, dict) else f" (got {shortened(value)})"
            parts.append(f"{where}: {error['msg'].removeprefix('Value error, ')}{shown}")
    return f"{path}: " + "; ".join(parts)
