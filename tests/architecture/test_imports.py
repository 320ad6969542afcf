"""Who may import whom is written down here and in pyproject.toml (import-linter), and fails."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = PROJECT / "src" / "headrace"

# A library that has one owner: everything else goes through that module.
OWNERS = {
    "feast": {"store", "feature_repo", "bench"},
    "ibis": {"store"},  # how Feast's DuckDB store reads its sources
    "kfp": {"launch", "components", "pipelines"},
    "kfp_server_api": {"launch"},
    "docker": {"launch"},
    "great_expectations": {"quality"},
    "mlflow": {"tracking"},
    "pyspark": {"spark", "store"},  # Feast's offline store on Spark is a query, ours as well
    "tensorflow": {"model"},
    "keras": {"bench"},
    "duckdb": {"source", "bench"},
    "redis": {"store", "bench"},
    "circus": {"stack"},
    "airflow": {"dags"},
}
PURE = (
    *("asof", "declaration", "errors", "events", "requests", "windows"),
    *("tracks", "runs", "questions", "order", "ranges"),
    *("labels", "metrics", "gates", "feature_rows", "bits"),
)
IO_MODULES = {"os", "io", "pathlib", "time", "socket", "subprocess", "threading", "httpx", "shutil"}


def sources() -> Iterator[tuple[str, Path]]:
    """Every Python file of the product with the name of its owner (module or top folder)."""
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).parts[0].removesuffix(".py"), path
    for folder in ("feature_repo", "components", "pipelines", "dags", "bench"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            yield folder, path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("library", OWNERS)
def test_each_outside_system_has_one_owner(library: str) -> None:
    trespassers = [
        str(path.relative_to(PROJECT))
        for owner, path in sources()
        if owner not in OWNERS[library] and library in imported(path)
    ]
    assert trespassers == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_no_io_and_read_no_clock(module: str) -> None:
    path = SOURCE / module
    files = sorted(path.rglob("*.py")) if path.is_dir() else [SOURCE / f"{module}.py"]
    assert [file for file in files if imported(file) & IO_MODULES] == []


def test_only_settings_reads_the_environment() -> None:
    readers = {
        owner
        for owner, path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        # setting a variable for a library before its import is not reading one
    } - {"settings", "model", "quality", "launch", "stack", "tracking"}
    assert readers == set()


def test_components_stay_thin() -> None:
    long = {
        path.name: len(path.read_text().splitlines())
        for owner, path in sources()
        if owner == "components" and len(path.read_text().splitlines()) > 45
    }
    assert long == {}


def test_components_look_for_garbage_seldom_before_they_import_anything_heavy() -> None:
    for owner, path in sources():
        if owner == "components" and path.name != "__init__.py":
            before, told, _ = path.read_text().partition("garbage.seldom()\n")
            imports = [line.strip() for line in before.splitlines() if "from headrace" in line]
            assert (imports, bool(told)) == (["from headrace import garbage"], True), path.name
