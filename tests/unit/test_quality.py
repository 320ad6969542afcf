"""The data gate accepts a sound window and names what is wrong with a bad one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import quality
from headrace.declaration import LineSpec
from headrace.events import sample_schema
from headrace.settings import PROJECT, load_line

HOUR_US = 3_600_000_000
ROWS = 400


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return load_line(PROJECT / "lines" / "coupons.yaml")


def window(spec: LineSpec, **given: Any) -> pa.Table:
    """Sound samples, with `given` columns in place of theirs."""
    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for field in sample_schema(spec):
        if pa.types.is_string(field.type):
            values: Any = [f"{field.name}-{i}" for i in range(ROWS)]
        elif pa.types.is_floating(field.type):
            values = generator.random(ROWS)
        else:
            values = np.arange(ROWS)
        columns[field.name] = values
    columns["label"] = (np.arange(ROWS) % 10 == 0).astype("int8")
    columns["revision"] = np.zeros(ROWS, "int32")
    columns["emitted_at"] = np.arange(ROWS) + HOUR_US  # the traffic began before the window
    columns |= given
    schema = sample_schema(spec)
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def test_a_sound_window_passes_with_its_statistics(spec: LineSpec) -> None:
    report = quality.check(spec, window(spec))
    assert report.passed
    assert report.reasons == []
    assert report.statistics["rows"] == ROWS
    assert report.statistics["label_rate"] == pytest.approx(0.1)


def test_bootstrapped_rows_without_scores_pass(spec: LineSpec) -> None:
    assert quality.check(spec, window(spec, score=np.full(ROWS, np.nan))).passed


def test_flipped_labels_are_named_with_the_rate_seen(spec: LineSpec) -> None:
    flipped = (np.arange(ROWS) % 10 != 0).astype("int8")
    report = quality.check(spec, window(spec, label=flipped))
    assert not report.passed
    whole, stretch = report.reasons
    assert whole == "label rate over impressions is 0.9, must be between 0.01 and 0.4"
    assert stretch.startswith("label rate of a stretch of impressions: 4 values (such as 0.9")


def test_a_burst_of_flipped_labels_that_leaves_the_mean_in_bounds_is_named(spec: LineSpec) -> None:
    labels = (np.arange(ROWS) % 10 == 0).astype("int8")
    labels[200:300] ^= 1
    report = quality.check(spec, window(spec, label=labels))
    assert [reason.partition(":")[0] for reason in report.reasons] == [
        "label rate of a stretch of impressions"
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label": np.full(ROWS, 2, "int8")}, "label: 400 values (such as 2, 2, 2) are not one of"),
        ({"impression_id": ["same"] * ROWS}, "(impression_id, revision): 400 values"),
        ({"item": np.full(ROWS, -1)}, "missing share of item is 1, must be between 0.0 and 0.2"),
        ({"item_ctr_1m": np.full(ROWS, np.nan)}, "missing share of item_ctr_1m is 1"),
        ({"item_ctr_1m": np.full(ROWS, np.inf)}, "item_ctr_1m: 400 values"),
        ({"item": np.full(ROWS, -7)}, "item: 400 values"),
        ({"score": np.full(ROWS, 1.5)}, "score: 400 values"),
    ],
)
def test_each_fault_is_named(spec: LineSpec, given: dict[str, Any], words: str) -> None:
    report = quality.check(spec, window(spec, **given))
    assert not report.passed
    assert any(reason.startswith(words) for reason in report.reasons), report.reasons


def test_too_few_rows_and_none_are_named(spec: LineSpec) -> None:
    sound = window(spec)
    few = quality.check(spec, sound.slice(0, 7))
    assert "row count is 7, must be at least 100" in few.reasons
    none = quality.check(spec, sound.slice(0, 0))
    assert none.reasons == ["row count is 0, must be at least 100"]


def test_corrections_of_earlier_windows_do_not_raise_the_label_rate(spec: LineSpec) -> None:
    sound = window(spec)
    corrections = window(
        spec,
        impression_id=[f"earlier-{i}" for i in range(ROWS)],
        revision=np.ones(ROWS, "int32"),
        label=np.ones(ROWS, "int8"),
    )
    report = quality.check(spec, pa.concat_tables([sound, corrections]))
    assert report.passed, report.reasons
    assert report.statistics["label_rate"] == pytest.approx(0.1)
    assert report.statistics["corrections"] == ROWS


def test_a_kept_report_speaks_for_its_window_only(tmp_path: Path) -> None:
    report = quality.DataReport(True, [], {"rows": 3})
    quality.keep(tmp_path, 3, 9, [(4, 5)], report)
    assert quality.passed(tmp_path, 3, 9, [[4, 5]]) is True
    assert quality.passed(tmp_path, 3, 9, []) is None
    assert quality.passed(tmp_path, 3, 10, [[4, 5]]) is None


@pytest.mark.slow
def test_the_gate_runs_where_main_is_no_file() -> None:
    """Great Expectations would end such a process with exit code 0, as if all were well."""
    code = "from headrace import quality\nwith quality._main_has_a_file():\n"
    code += "    import great_expectations\nprint('imported')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "imported\n"


@pytest.mark.slow
def test_a_long_history_is_judged_part_by_part(spec: LineSpec) -> None:
    good, short = window(spec), window(spec).slice(0, 120)
    assert quality.check_parts(spec, [good]) == quality.check(spec, good)
    assert quality.check_parts(spec, []) == quality.check(spec, good.slice(0, 0))
    both = quality.check_parts(spec, [good, short])
    assert both.passed
    counted = [quality.check(spec, part).statistics for part in (good, short)]
    assert both.statistics["rows"] == good.num_rows + 120
    clicks = sum(one["label_rate"] * one["impressions"] for one in counted)
    assert both.statistics["label_rate"] == pytest.approx(clicks / both.statistics["impressions"])
    wrong = quality.check_parts(spec, [good, window(spec, label=np.full(ROWS, 2))])
    where = f"rows {good.num_rows} to {2 * good.num_rows}: "
    assert not wrong.passed
    assert wrong.reasons and all(reason.startswith(where) for reason in wrong.reasons)
