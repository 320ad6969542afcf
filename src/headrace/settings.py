"""The only reader of the environment, and the parser of lines.

Settings are read once into a frozen value; a line's YAML becomes a `LineSpec` or a
`DeclarationError` that names the key, the value and the remedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """Where things are and on which ports. Every service binds to `host`."""

    home: Path
    lines_dir: Path
    feature_repo: Path
    host: str
    server_port: int
    collector_port: int
    airflow_port: int
    kfp_endpoint: str | None
    kfp_token: str | None = field(repr=False)

    def line_home(self, line: str) -> Path:
        """Folder of everything that belongs to one line: logs, ticks, samples, versions."""
        return self.home / "lines" / line

    @property
    def server_url(self) -> str:
        return f"http://{self.host}:{self.server_port}"

    @property
    def collector_url(self) -> str:
        return f"http://{self.host}:{self.collector_port}"

    @property
    def airflow_url(self) -> str:
        return f"http://{self.host}:{self.airflow_port}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `HEADRACE_*` from the environment (or the given mapping)."""
    env = os.environ if environ is None else environ

    def path(name: str, default: Path) -> Path:
        return Path(env.get(name) or default).resolve()

    def port(name: str, default: int) -> int:
        text = env.get(name, str(default))
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise DeclarationError(f"{name}={text!r} is not a port; give a number from 1 to 65535")
        return int(text)

    return Settings(
        home=path("HEADRACE_HOME", PROJECT / "out" / "stack"),
        lines_dir=path("HEADRACE_LINES_DIR", PROJECT / "lines"),
        feature_repo=Path(
            env.get("HEADRACE_FEATURE_REPO", str(PROJECT / "feature_repo"))
        ).resolve(),
        host=env.get("HEADRACE_HOST", "127.0.0.1"),
        server_port=port("HEADRACE_SERVER_PORT", 8500),
        collector_port=port("HEADRACE_COLLECTOR_PORT", 8501),
        airflow_port=port("HEADRACE_AIRFLOW_PORT", 8080),
        kfp_endpoint=env.get("HEADRACE_KFP_ENDPOINT") or None,
        kfp_token=env.get("HEADRACE_KFP_TOKEN") or None,
    )


def load_line(path: Path) -> LineSpec:
    """Parse one line's YAML. Raises `DeclarationError` listing every wrong key."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none"
        raise DeclarationError(f"{path}: no such line file; there are: {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as problem:
        raise DeclarationError(f"{path}: not readable as YAML: {problem}") from problem
    if not isinstance(raw, dict):
        raise DeclarationError(f"{path}: a line is a mapping of keys; start with `line: <name>`")
    try:
        return LineSpec.model_validate(raw)
    except ValidationError as problem:
        raise DeclarationError(_explain(path, problem)) from None


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


def _explain(path: Path, problem: ValidationError) -> str:
    parts = []
    for error in problem.errors():
        where = ".".join(str(part) for part in error["loc"]) or "line"
        if error["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown key; remove it or correct its spelling")
        else:
            value = error.get("input")
            shown = "" if isinstance(value, dict) else f" (got {value!r})"
            parts.append(f"{where}: {error['msg'].removeprefix('Value error, ')}{shown}")
    return f"{path}: " + "; ".join(parts)
