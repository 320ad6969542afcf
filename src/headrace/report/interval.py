"""Figures of a line over an interval of time, from its samples, cycles, versions and alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import alarms, drift, metrics
from headrace.cases.sheet import own_columns
from headrace.cycle import records
from headrace.declaration import LineSpec
from headrace.events import served_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.report.answered import Interval, interval, sliced_columns, slices
from headrace.report.freshness import served_staleness
from headrace.report.worst import worst
from headrace.sample import Quarantine, ticks
from headrace.settings import Settings

Floats = NDArray[np.float64]
STALENESS_POINTS: Final = 600
CASES: Final = 3
"""Worst rows of each slice, clicked and others, that a report shows."""
NEWEST_SERVED: Final = 200_000


def quality(labels: NDArray[np.int8], scores: Floats) -> dict[str, float | int | None]:
    """Rows, label rate, log loss, AUC, K-S and calibration; None where the rows do not tell."""
    found = {
        "label_rate": float(labels.mean()) if labels.size else float("nan"),
        "logloss": metrics.log_loss(labels, scores),
        "auc": metrics.auc(labels, scores),
        "ks": metrics.ks(labels, scores),
        "calibration": metrics.calibration(labels, scores),
    }
    told = {name: value if np.isfinite(value) else None for name, value in found.items()}
    return {"rows": int(labels.size), **told}


def by_time(about: Interval, parts: int = 12) -> list[dict[str, Any]]:
    """Quality of each day (UTC); of an interval within one day, of each of `parts` of it."""
    served_us = about.rows["served_at"].cast(pa.int64()).to_numpy()
    days = np.datetime_as_string(served_us.astype("datetime64[us]"), unit="D")
    if served_us.size and np.unique(days).size == 1:
        step = max((about.to_us - about.from_us) // parts, 1)
        days = np.datetime_as_string(
            (served_us - (served_us - about.from_us) % step).astype("datetime64[us]"), unit="s"
        )
    return [
        {"when": str(day), **quality(about.labels[days == day], about.scores[days == day])}
        for day in np.unique(days)
    ]


def by_slice(spec: LineSpec, about: Interval) -> list[dict[str, Any]]:
    """Quality of the commonest values of the sliced columns, and of each arm.

    Columns are those that name the inputs in `gates.model.slices`, so that slices carry words.
    """
    told = []
    for column in (*sliced_columns(spec), "arm", "version"):
        for name, inside in slices(about.rows, column).items():
            figures = quality(about.labels[inside], about.scores[inside])
            told.append({"slice": name, **figures})
    return told


def curves(labels: NDArray[np.int8], scores: Floats) -> dict[str, list[float]]:
    """Points of the ROC curve, of both cumulative distributions, of the calibration by tenths."""
    if not 0 < labels.sum() < labels.size:
        return {}
    order = np.argsort(-scores, kind="stable")
    hit = np.cumsum(labels[order] > 0) / (labels > 0).sum()
    false = np.cumsum(labels[order] <= 0) / (labels <= 0).sum()
    some = np.unique(np.linspace(0, labels.size - 1, 200).astype(np.int64))
    groups = [part for part in np.array_split(order[::-1], 10) if part.size]
    return {
        "false_positive": [0.0, *false[some].tolist()],
        "true_positive": [0.0, *hit[some].tolist()],
        "score": scores[order][some].tolist(),
        "predicted": [float(scores[part].mean()) for part in groups],
        "observed": [float(labels[part].mean()) for part in groups],
    }


def measure(settings: Settings, spec: LineSpec, from_us: int, to_us: int) -> dict[str, Any]:
    """All that the report shows, JSON-ready."""
    about = interval(settings, spec, from_us, to_us)
    home = settings.line_home(spec.line)
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    versions = {version.version: version for version in store.versions()}
    log = FileLog(home / "log" / "served", served_schema(spec))
    served = log.read(max(log.head - NEWEST_SERVED, 0), log.head)
    at_us, stale_s = served_staleness(served, versions)
    inside = (at_us >= from_us) & (at_us < to_us)
    cycles = [c for c in records(settings, spec) if from_us <= c.ended_us < to_us]
    counted = ticks(home, about.from_tick, about.to_tick)
    events = sum(tick.events[1] - tick.events[0] for tick in counted)
    return {
        "line": spec.line,
        "from_us": from_us,
        "to_us": to_us,
        "events": events,
        "quality": quality(about.labels, about.scores),
        "by_time": by_time(about),
        "by_slice": by_slice(spec, about),
        "cases": worst(spec, about, CASES),
        "case_columns": own_columns(spec),
        "curves": curves(about.labels, about.scores),
        "staleness": _staleness(at_us[inside], stale_s[inside]),
        "cycles": [asdict(cycle) for cycle in cycles],
        "champions": [
            {**asdict(c), "at_us": c.at_us} for c in store.history() if from_us <= c.at_us < to_us
        ],
        "verdicts": _verdicts(store, cycles),
        "alarms": [a for a in alarms.alarms(settings, spec.line) if from_us <= a["at_us"] < to_us],
        "quarantine": Quarantine(home).intervals(),
        "drift": drift.told(settings, spec),
        "cost": _cost(home, cycles, events),
    }


def _staleness(at_us: NDArray[np.int64], stale_s: Floats) -> dict[str, Any]:
    order = np.argsort(at_us, kind="stable")
    some = order[np.linspace(0, order.size - 1, min(STALENESS_POINTS, order.size)).astype(int)]
    levels = np.quantile(stale_s, [0.5, 0.95, 1.0]).tolist() if stale_s.size else [None] * 3
    return {
        **dict(zip(("p50", "p95", "max"), levels, strict=True)),
        "at_us": at_us[some].tolist(),
        "seconds": stale_s[some].tolist(),
    }


def _verdicts(store: LineStore, cycles: Sequence[Any]) -> list[dict[str, Any]]:
    """What was measured of each candidate, and what the gate said."""
    told = []
    for cycle in cycles:
        evidence = store.evidence(cycle.version) if cycle.version else None
        if evidence is None:
            continue
        shown = ("rows", "candidate_logloss", "champion_logloss", "auc", "ks", "calibration")
        told.append({"version": cycle.version, "outcome": cycle.outcome}
                    | {name: evidence.get(name) for name in shown})  # fmt: skip
    return told


def _cost(home: Path, cycles: Sequence[Any], events: int) -> dict[str, Any]:
    """Bytes on disk by folder, and what the cycles took, for a million events."""
    folders = ("log", "samples", "features", "ticks", "versions")
    sizes = {
        name: sum(path.stat().st_size for path in (home / name).rglob("*") if path.is_file())
        for name in folders
    }
    seconds = sum(max(c.ended_us - c.started_us, 0) for c in cycles) / 1e6
    million = events / 1e6
    return {
        "bytes": sizes,
        "cycle_seconds": seconds,
        "cycle_seconds_per_million": seconds / million if million else None,
    }
