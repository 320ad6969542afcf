"""Figures of a line over an interval of time, from its samples, cycles, versions and alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import alarms, drift, metrics
from headrace.cycle import records
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import served_schema
from headrace.labels.revisions import newest, unsettled
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.report.freshness import served_staleness
from headrace.sample import Quarantine, head_tick, read_samples, tick_as_of, ticks
from headrace.settings import Settings

Floats = NDArray[np.float64]
MOST_SLICES: Final = 12
FEWEST: Final = 30
STALENESS_POINTS: Final = 600
NEWEST_SERVED: Final = 200_000


@dataclass(frozen=True)
class Interval:
    """What a report is about: `[from_us, to_us)`, its ticks, and the rows scored in it."""

    from_us: int
    to_us: int
    from_tick: int
    to_tick: int
    rows: pa.Table

    @property
    def labels(self) -> NDArray[np.int8]:
        found: NDArray[np.int8] = self.rows["label"].to_numpy()
        return found

    @property
    def scores(self) -> Floats:
        found: Floats = self.rows["score"].to_numpy()
        return found


def interval(settings: Settings, spec: LineSpec, from_us: int, to_us: int) -> Interval:
    """The interval's ticks, and the newest label of each impression that a model scored in it.

    Raises `InputError` where no tick lies in it.
    """
    home = settings.line_home(spec.line)
    head = head_tick(home)
    first, last = (min(tick_as_of(home, at_us), head) for at_us in (from_us, to_us))
    if first >= last:
        raise InputError(
            f"line {spec.line!r}: no tick lies between these times; it has {head} ticks"
            + (
                f", the last of {np.datetime64(ticks(home, head - 1)[0].at_us, 'us')}Z"
                if head
                else ""
            )
        )
    refused = [(q["from"], q["to"]) for q in Quarantine(home).intervals()]
    samples = read_samples(spec, home, first, last, exclude=refused)
    rows = newest(samples.filter(pa.array(~unsettled(spec, samples))))
    return Interval(from_us, to_us, first, last, rows.filter(pc.is_finite(rows["score"])))


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
    sources = {f.name: f.of for f in spec.request_features if hasattr(f, "of")}
    wanted = [sources.get(name) for name in spec.gates.model.slices]
    columns = [name for name in wanted if isinstance(name, str) and name in spec.columns]
    told = []
    for column in (*columns, "arm", "version"):
        values = np.array([str(value) for value in about.rows[column].to_pylist()], dtype=object)
        names, counts = np.unique(values.astype(str), return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:MOST_SLICES]:
            inside = values == names[place]
            if counts[place] >= FEWEST:
                figures = quality(about.labels[inside], about.scores[inside])
                told.append({"slice": f"{column} {names[place]}", **figures})
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
