"""The rules asked with NumPy say what Great Expectations says of the same window."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import quality, rules
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError
from headrace.settings import PROJECT, load_line
from tests.unit.test_quality import ROWS, spec, window

__all__ = ["spec"]

DRAW = np.random.default_rng(4)
LABELS = (np.arange(ROWS) % 10 == 0).astype("int8")


def said(spec: LineSpec, samples: pa.Table, **settled: Any) -> list[str]:
    return rules.broken(rules.frame(spec, samples, **settled), rules.declared(spec))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"label": 1 - LABELS, "score": np.where(LABELS, 1.5, 0.5)},
        {"label": LABELS ^ (np.arange(ROWS) // 100 == 2).astype("int8")},
        {"label": np.full(ROWS, 2, "int8"), "revision": np.full(ROWS, 3, "int32")},
        {"impression_id": [f"i{i // 3}" for i in range(ROWS)]},
        {
            "item": DRAW.choice([-7, -1, 3], ROWS),
            "item_ctr_1m": DRAW.choice([np.nan, np.inf, 0.5], ROWS),
            "score": DRAW.choice([np.nan, -0.5, 0.5], ROWS),
        },
    ],
)
def test_both_ways_of_asking_give_the_same_sentences(spec: LineSpec, given: dict[str, Any]) -> None:
    samples = window(spec, **given)
    report = quality.check(spec, samples)
    assert said(spec, samples) == report.reasons
    assert bool(report.reasons) == bool(given)


def test_too_few_rows_are_told_as_the_gate_tells_them(spec: LineSpec) -> None:
    assert "row count is 7, must be at least 100" in said(spec, window(spec).slice(0, 7))


def test_only_settled_rows_tell_the_label_rate(spec: LineSpec) -> None:
    labels = LABELS.copy()
    labels[:200] = 1
    settled = np.arange(ROWS) >= 200
    samples = window(spec, label=labels)
    assert said(spec, samples)[0].startswith("label rate over impressions is 0.55")
    assert said(spec, samples, settled=settled) == []
    assert quality.check(spec, samples, settled).passed


OWN = """
- {kind: between, column: item_ctr_1m, high: 0.5}   # in place of: finite
- {kind: between, column: score, drop: true}
- {kind: mean, column: item_ctr_10m, low: 0.7}      # beside the generated ones
"""


def test_expectations_beside_the_line_replace_drop_and_add(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "lines" / "coupons.yaml", tmp_path)
    folder = tmp_path / "coupons" / "expectations"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(OWN, encoding="utf-8")
    line = load_line(tmp_path / "coupons.yaml")
    samples = window(line, score=np.full(ROWS, 1.5))
    said = rules.broken(rules.frame(line, samples), rules.declared(line))
    assert sorted(said) == sorted(quality.check(line, samples).reasons)
    assert [reason.split()[0] for reason in said] == ["item_ctr_1m:", "item_ctr_10m"]
    assert "are not at most 0.5" in said[0]
    (folder / "own.yaml").write_text("- {kind: between, column: itme, low: 1}", encoding="utf-8")
    with pytest.raises(DeclarationError, match="between of column 'itme'; name an input"):
        load_line(tmp_path / "coupons.yaml")
    (folder / "own.yaml").write_text("kind: between", encoding="utf-8")
    with pytest.raises(DeclarationError, match=r"own\.yaml: not a list of expectations"):
        load_line(tmp_path / "coupons.yaml")
