"""The data gate: a Great Expectations suite generated from a line's declaration.

The suite runs by a checkpoint in an ephemeral context over one pandas frame of the window's
samples. Great Expectations is imported on the first check only (1.5 s and more).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from headrace import metrics
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.events import task_scores
from headrace.labels.revisions import unsettled

if TYPE_CHECKING:
    import pandas as pd

_LARGEST: Final = float(np.finfo(np.float64).max)
_FIRST_LABEL: Final = "label_of_impression"
_SAMPLE_KEY: Final = "sample_key"
_ODD_STRETCH: Final = "label_rate_of_odd_stretch"
_UNCLICKED: Final = "conversion_less_click"


@dataclass(frozen=True)
class DataReport:
    """Outcome of the data gate: `reasons` are sentences with the observed values."""

    passed: bool
    reasons: list[str]
    statistics: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def check(spec: LineSpec, samples: pa.Table) -> DataReport:
    """Check a window of samples (`events.sample_schema`, stream order) against the declaration.

    The label rate is over impressions whose first sample lies in the window, each with its
    newest label, so corrections of earlier windows do not count twice; it is checked over the
    window and over each stretch of `min_rows` of them, so that a burst of wrong labels does not
    hide in the mean. Impressions too young to be judged (`labels.revisions.unsettled`) are left
    out of it. Everything else is over all rows. An expectation that cannot be evaluated
    fails the window.
    """
    frame = _frame(spec, samples)
    statistics = _statistics(spec, frame)
    if not len(frame):
        need = spec.gates.data.min_rows
        return DataReport(False, [f"row count is 0, must be at least {need}"], statistics)
    reasons = [_sentence(result) for result in _run(spec, frame) if not result.success]
    return DataReport(not reasons, reasons, statistics)


def _frame(spec: LineSpec, samples: pa.Table) -> pd.DataFrame:
    """One row for each sample: keys, label, score, model inputs, indicators of what is missing."""
    inputs = (*spec.model.categorical, *spec.model.numeric)
    names = ("impression_id", "request_id", "revision", "label", "score", *inputs)
    if spec.converts:
        names += ("conversion", *task_scores(spec))
    frame: pd.DataFrame = samples.select(list(dict.fromkeys(names))).to_pandas()
    frame[_SAMPLE_KEY] = frame["impression_id"] + "#" + frame["revision"].astype(str)
    newest = frame.groupby("impression_id", sort=False)["label"].transform("last")
    known = (frame["revision"] == 0) & ~unsettled(spec, samples)
    frame[_FIRST_LABEL] = newest.where(known).astype("float64")
    if spec.converts:
        frame[_UNCLICKED] = frame["conversion"] - frame["label"]
    frame[_ODD_STRETCH] = _odd_stretches(spec, frame[_FIRST_LABEL])
    for name in spec.model.categorical:
        frame[f"{name}__missing"] = (frame[name] == -1).astype("float64")
    for name in spec.model.numeric:
        frame[f"{name}__missing"] = frame[name].isna().astype("float64")
    return frame


def _odd_stretches(spec: LineSpec, labels: pd.Series[float]) -> pd.Series[float]:
    """Label rate at the first row of each stretch that cannot be right; NaN, which passes, else."""
    gate, known = spec.gates.data, labels.dropna()
    odd = metrics.implausible_stretches(known.to_numpy(), gate.label_rate, gate.min_rows)
    rates = labels * np.nan
    for first, rate in odd:
        rates.loc[known.index[first]] = rate
    return rates


def _statistics(spec: LineSpec, frame: pd.DataFrame) -> dict[str, Any]:
    labels = frame[_FIRST_LABEL].dropna()
    missing = {
        name: float(frame[f"{name}__missing"].mean()) if len(frame) else None
        for name in (*spec.model.categorical, *spec.model.numeric)
    }
    return {
        "rows": len(frame),
        "impressions": len(labels),
        "corrections": int((frame["revision"] > 0).sum()),
        "label_rate": float(labels.mean()) if len(labels) else None,
        "missing_share": missing,
    }


def _expectations(spec: LineSpec, gxe: Any) -> list[Any]:
    gate = spec.gates.data
    low, high = gate.label_rate
    revisions = [0, 1] if not spec.converts else [0, 1, 2]
    between = gxe.ExpectColumnValuesToBeBetween
    suite = [
        gxe.ExpectTableRowCountToBeBetween(min_value=gate.min_rows),
        gxe.ExpectColumnValuesToNotBeNull(column="impression_id"),
        gxe.ExpectColumnValuesToNotBeNull(column="request_id"),
        gxe.ExpectColumnValuesToNotBeNull(column="label"),
        gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[0, 1]),
        gxe.ExpectColumnValuesToBeInSet(column="revision", value_set=revisions),
        gxe.ExpectColumnValuesToBeUnique(column=_SAMPLE_KEY),
        gxe.ExpectColumnMeanToBeBetween(column=_FIRST_LABEL, min_value=low, max_value=high),
        between(column=_ODD_STRETCH, min_value=low, max_value=high),
        # NaN scores (bootstrapped rows were never scored) count as null here and pass.
        between(column="score", min_value=0.0, max_value=1.0),
    ]
    if spec.converts:
        suite += [
            gxe.ExpectColumnValuesToBeInSet(column="conversion", value_set=[0, 1]),
            between(column=_UNCLICKED, max_value=0),  # no conversion without a click
            *(between(column=name, min_value=0.0, max_value=1.0) for name in task_scores(spec)),
        ]
    suite += [between(column=name, min_value=-1) for name in spec.model.categorical]
    suite += [
        between(column=name, min_value=-_LARGEST, max_value=_LARGEST) for name in spec.model.numeric
    ]
    suite += [
        gxe.ExpectColumnMeanToBeBetween(
            column=f"{name}__missing", min_value=0.0, max_value=gate.max_missing_share
        )
        for name in (*spec.model.categorical, *spec.model.numeric)
    ]
    return suite


@contextmanager
def _main_has_a_file() -> Iterator[None]:
    """Great Expectations imports pyspark's connect client, which ends the process with exit code 0
    where `__main__` has neither a spec nor a file (`python -c`, a pytest-xdist worker).
    """
    main = sys.modules["__main__"]
    bare = getattr(main, "__spec__", None) is None and not hasattr(main, "__file__")
    if bare:
        main.__file__ = __file__
    try:
        yield
    finally:
        if bare:
            del main.__file__


def _run(spec: LineSpec, frame: pd.DataFrame) -> list[Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "False"  # read once, when GX is imported
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # else 500 lines a start
    with warnings.catch_warnings(), _main_has_a_file():
        warnings.simplefilter("ignore", ImportWarning)  # of an optional part of google.api_core
        import great_expectations as gx
        from great_expectations import expectations as gxe

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    batches = (
        context.data_sources.add_pandas("samples")
        .add_dataframe_asset("window")
        .add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(
        gx.ExpectationSuite(name=spec.line, expectations=_expectations(spec, gxe))
    )
    validation = context.validation_definitions.add(
        gx.ValidationDefinition(name=spec.line, data=batches, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=spec.line,
            validation_definitions=[validation],
            result_format={"result_format": "BASIC", "partial_unexpected_count": 5},
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": frame})
    return [result for run in outcome.run_results.values() for result in run.results]


_NAMES: Final = {
    "expect_table_row_count_to_be_between": "row count",
    _FIRST_LABEL: "label rate over impressions",
    _ODD_STRETCH: "label rate of a stretch of impressions",
    _SAMPLE_KEY: "(impression_id, revision)",
    _UNCLICKED: "conversion less click",
}


def _sentence(result: Any) -> str:
    """A failed expectation as a sentence: what was seen, and what it must be."""
    config = result.expectation_config
    kind, given, seen = config.type, config.kwargs, result.result or {}
    column = given.get("column", "")
    subject = _NAMES.get(column) or _NAMES.get(kind) or column
    if column.endswith("__missing"):
        subject = f"missing share of {column.removesuffix('__missing')}"
    message = (result.exception_info or {}).get("exception_message")
    if message:
        return f"{subject or kind} could not be checked: {message}"
    if "observed_value" in seen:
        value = seen["observed_value"]
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        return f"{subject} is {shown}, must be {_bounds(given)}"
    count, examples = seen.get("unexpected_count"), seen.get("partial_unexpected_list") or []
    rule = {
        "expect_column_values_to_be_unique": "unique",
        "expect_column_values_to_not_be_null": "present",
        "expect_column_values_to_be_in_set": f"one of {given.get('value_set')}",
    }.get(kind) or _bounds(given)
    shown = f" (such as {', '.join(map(str, examples[:3]))})" if examples else ""
    return f"{subject}: {count} values{shown} are not {rule}"


def _bounds(given: Any) -> str:
    low, high = given.get("min_value"), given.get("max_value")
    if high == _LARGEST:
        return "finite"
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"


def keep(
    home: Path, from_tick: int, to_tick: int, excluded: Sequence[Sequence[int]], report: DataReport
) -> None:
    """Store the report of a window (`excluded` ticks left out), replacing an earlier one."""
    body = {"excluded": [list(interval) for interval in excluded], **report.to_dict()}
    write_json(_path(home, from_tick, to_tick), body)


def passed(
    home: Path, from_tick: int, to_tick: int, excluded: Sequence[Sequence[int]]
) -> bool | None:
    """Whether exactly this window passed the gate; None where no such report is stored."""
    path = _path(home, from_tick, to_tick)
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["excluded"] != [list(interval) for interval in excluded]:
        return None
    return bool(stored["passed"])


def _path(home: Path, from_tick: int, to_tick: int) -> Path:
    return home / "gates" / f"data-{from_tick:08d}-{to_tick:08d}.json"
