"""Every benchmark runs on little data, states its claims, and can be printed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from headrace import results

BENCH = Path(__file__).resolve().parents[2] / "bench"
STARTS_SERVICES = {"learner": [pytest.mark.e2e], "soak": [pytest.mark.e2e, pytest.mark.faults]}
NAMES = [
    pytest.param(name, marks=STARTS_SERVICES.get(name, []))
    for name in sorted(path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("_"))
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_states_its_claims(name: str, tmp_path: Path) -> None:
    result = importlib.import_module(f"bench.{name}").run(quick=True)
    assert {"name", "value", "unit", "goal", "holds"} == set(result["claims"][0])
    assert all(claim["holds"] for claim in result["claims"] if claim["unit"] == "")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    assert results.write(tmp_path / "results.md", tmp_path) == ["bench"]
    printed = (tmp_path / "results.md").read_text(encoding="utf-8")
    cells = [claim["name"] for claim in result["claims"]]
    cells += [cell for row in result.get("table", {}).get("rows", []) for cell in row]
    assert all(f"| {cell} |" in printed for cell in cells)
