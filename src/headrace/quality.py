"""The data gate: a Great Expectations suite generated from a line's declaration.

The suite runs by a checkpoint in an ephemeral context over one pandas frame of the window's
samples. Great Expectations is imported on the first check only (1.5 s and more).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import rules
from headrace.atomic import write_json
from headrace.baseline import Figures
from headrace.declaration import LineSpec
from headrace.events import sample_schema
from headrace.rules import FIRST_LABEL, Rule, Seen, name_of, sentence

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DataReport:
    """Outcome of the data gate: `reasons` are sentences with the observed values.

    `failed_rows`: some of the rows that broke a rule, each with that rule (`rules.failing`).
    """

    passed: bool
    reasons: list[str]
    statistics: dict[str, Any] = field(default_factory=dict)
    failed_rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the rows."""
        body = asdict(self)
        del body["failed_rows"]
        return body


def check(
    spec: LineSpec,
    samples: pa.Table,
    settled: NDArray[np.bool_] | None = None,
    figures: Figures | None = None,
    docs: Path | None = None,
) -> DataReport:
    """Check a window of samples (`events.sample_schema`, stream order) against the declaration.

    The label rate is over impressions whose first sample lies in the window, each with its
    newest label, so corrections of earlier windows do not count twice; it is checked over the
    window and over each stretch of `min_rows` of them, so that a burst of wrong labels does not
    hide in the mean. Impressions too young to be judged (`labels.revisions.unsettled`) are left
    out of it, and so are rows that a given `settled` (rows,) leaves out. Everything else is over
    all rows. `figures` compare the window with the line's past. An expectation that cannot be
    evaluated fails the window. Of a window that fails, Data Docs are written to the folder `docs`.
    """
    window = rules.frame(spec, samples, settled, figures)
    demands = rules.declared(spec, figures)
    statistics = _statistics(spec, window)
    statistics["figures"] = {name: each.value for name, each in (figures or {}).items()}
    if not len(window):
        need = spec.gates.data.min_rows
        return DataReport(False, [f"row count is 0, must be at least {need}"], statistics)
    results = _run(spec, window, demands, docs)
    reasons = [_sentence(demands, result) for result in results if not result.success]
    failed = rules.failing(window, demands) if reasons else []
    return DataReport(not reasons, reasons, statistics, failed)


def check_parts(
    spec: LineSpec,
    parts: Iterable[pa.Table],
    measure: Callable[[pa.Table], Figures] = lambda _window: {},
    docs: Path | None = None,
) -> DataReport:
    """Check a history too long for one frame: each of its parts as `check` does, in order, with
    the figures that `measure` finds in it.

    One part gives the report of `check`. Of several each must pass by itself, so the gate is no
    milder; a label whose correction lies in the next part counts as it stood. Statistics are
    those of all rows.
    """
    reports = []
    first = 0
    for part in parts:
        report = check(spec, part, figures=measure(part), docs=docs)
        last = first + part.num_rows
        reports.append((f"rows {first} to {last}: ", report))
        first = last
    if not reports:
        return check(spec, sample_schema(spec).empty_table())
    if len(reports) == 1:
        return reports[0][1]
    reasons = [where + reason for where, report in reports for reason in report.reasons]
    together = _together([report.statistics for _, report in reports])
    failed = [row for _, report in reports for row in report.failed_rows]
    return DataReport(not reasons, reasons, together, failed)


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of several parts as those of all their rows."""

    def mean(values: list[Any], weights: list[int]) -> float | None:
        total = sum(weights)
        return (
            sum(v * w for v, w in zip(values, weights, strict=True) if w) / total if total else None
        )

    counted = {n: [part[n] for part in parts] for n in ("rows", "impressions", "corrections")}
    missing = [part["missing_share"] for part in parts]
    return {
        **{name: sum(counts) for name, counts in counted.items()},
        "label_rate": mean([part["label_rate"] for part in parts], counted["impressions"]),
        "missing_share": {
            name: mean([shares[name] for shares in missing], counted["rows"]) for name in missing[0]
        },
    }


def _statistics(spec: LineSpec, frame: pd.DataFrame) -> dict[str, Any]:
    labels = frame[FIRST_LABEL].dropna()
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


def _expectation(gxe: Any, rule: Rule, number: int) -> Any:
    """A rule as Great Expectations has it; `meta` tells which one a result is about."""
    given: dict[str, Any] = {"meta": {"rule": number}}
    if rule.kind == "rows":
        return gxe.ExpectTableRowCountToBeBetween(min_value=rule.low, **given)
    given["column"] = rule.column
    if rule.kind == "present":
        return gxe.ExpectColumnValuesToNotBeNull(**given)
    if rule.kind == "one_of":
        return gxe.ExpectColumnValuesToBeInSet(value_set=list(rule.values), **given)
    if rule.kind == "unique":
        return gxe.ExpectColumnValuesToBeUnique(**given)
    given |= {"min_value": rule.low, "max_value": rule.high}
    if rule.kind == "mean":
        return gxe.ExpectColumnMeanToBeBetween(**given)
    return gxe.ExpectColumnValuesToBeBetween(**given)


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


def _run(
    spec: LineSpec, frame: pd.DataFrame, demands: Sequence[Rule], docs: Path | None
) -> list[Any]:
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
        gx.ExpectationSuite(
            name=spec.line,
            expectations=[_expectation(gxe, rule, number) for number, rule in enumerate(demands)],
        )
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
    if docs is not None and not outcome.success:
        context.build_data_docs()
        (site,) = context.get_docs_sites_urls()
        built = Path(url2pathname(urlsplit(site["site_url"]).path)).parent
        shutil.copytree(built, docs, dirs_exist_ok=True)
    return [result for run in outcome.run_results.values() for result in run.results]


def _sentence(demands: Sequence[Rule], result: Any) -> str:
    """A failed expectation as a sentence: what was seen, and what it must be."""
    rule = demands[result.expectation_config.meta["rule"]]
    seen = result.result or {}
    message = (result.exception_info or {}).get("exception_message")
    if message:
        return f"{name_of(rule)} could not be checked: {message}"
    if rule.kind in ("rows", "mean"):
        value = seen.get("observed_value")  # of no values there is none
        return sentence(rule, Seen(value=float("nan") if value is None else value))
    examples = seen.get("partial_unexpected_list") or []
    if rule.kind == "figure" and examples:
        return sentence(rule, Seen(value=float(examples[0])))
    return sentence(rule, Seen(count=int(seen.get("unexpected_count") or 0), examples=examples))


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


def passed_until(home: Path, from_tick: int, to_tick: int) -> int:
    """How much of `[from_tick, to_tick)` has passed as an earlier, shorter window: the tick where
    the longest one ended, `from_tick` without any.
    """
    until = from_tick
    for path in (home / "gates").glob(f"data-{from_tick:08d}-*.json"):
        end = int(path.stem.rpartition("-")[2])
        if until < end < to_tick and json.loads(path.read_text(encoding="utf-8"))["passed"]:
            until = end
    return until


def _path(home: Path, from_tick: int, to_tick: int) -> Path:
    return home / "gates" / f"data-{from_tick:08d}-{to_tick:08d}.json"
