"""Every benchmark runs on little data and states its claims."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
NAMES = sorted(path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_states_its_claims(name: str) -> None:
    result = importlib.import_module(f"bench.{name}").run(quick=True)
    assert {"name", "value", "unit", "goal", "holds"} == set(result["claims"][0])
    assert all(claim["holds"] for claim in result["claims"] if claim["unit"] == "")
