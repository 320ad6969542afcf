"""Replay an event file in knowledge-time order and compare fresh, daily and frozen training.

One pass through the same label join, window kernel, request features, model and gates as the
live line. Every impression is predicted before it is learned, with windows exact at its own
time; a label is learned only after it was known. All policies share the features, which
are always fresh: they differ in training alone.

- fresh learns at each `cadence.incremental` what became known (waiting for
  `gates.data.min_rows` samples, as the live cycle does);
- daily learns it at each midnight of the line's timezone;
- frozen is daily up to the end of the first month (the first day, in less than 60 days of
  data) and then learns nothing more.
"""

from __future__ import annotations

import calendar
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import IMPRESSION, TIME, input_fields, served_schema
from headrace.labels.state import LabelState
from headrace.replay.learning import GatedLearner, window_reasons
from headrace.replay.parity import Streamed
from headrace.replay.scoreboard import POLICIES, comparisons, explanation, scores
from headrace.requests import transform
from headrace.source import SourceCounts, read_events
from headrace.windows import WindowState

Progress = Callable[[int, int, str], None]
Ints = NDArray[np.int64]
_DAY_US: Final = 86_400_000_000
_MONTH_FROM_DAYS: Final = 60
_SUITE_CHECKS: Final = 12


def replay(spec: LineSpec, data_dir: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Stream the line's files and score the three policies; returns the JSON of DESIGN.md.

    `parity` in it compares every vector with a batch computation from the whole log.
    `progress(done, total, note)` is told after each day, in log records. Raises `InputError`
    for files that do not fit the declaration, and when no row gets a label.
    """
    events, counts = read_events(spec, data_dir)
    if counts.impressions == 0:
        raise InputError(
            f"line {spec.line!r}: no impression is left of {counts.rows} rows ({counts.excluded} "
            f"excluded by `where`, {counts.malformed} malformed); correct source.impressions"
        )
    run = _Run(spec, events)
    for stop, note in run.days():
        if progress is not None:
            progress(stop, events.num_rows, note)
    return run.result(counts)


class _Run:
    """The state of one replay."""

    def __init__(self, spec: LineSpec, events: pa.Table) -> None:
        self.spec = spec
        offsets = pa.array(np.arange(events.num_rows, dtype=np.int64))
        self.events = events.append_column("offset", offsets)
        self.arrival_us: Ints = events["arrival_at"].cast(pa.int64()).to_numpy()
        self.is_shown = np.asarray(pc.equal(events["event"], IMPRESSION).to_numpy(), dtype=np.bool_)
        self.predictions = {name: np.full(events.num_rows, np.nan) for name in POLICIES}
        self.places = np.zeros(events.num_rows, dtype=np.int64)  # in which each record ended: one
        self.labels = np.full(events.num_rows, -1, dtype=np.int8)
        self.windows = WindowState(spec)
        # resolves a day at a time, so that the day's vectors can be computed at once; exact,
        # because the kernel answers each row at its own time and resolve does not mind the split
        self.ahead = LabelState(spec)
        self.labelled = LabelState(spec)
        self.fresh, self.daily = GatedLearner(spec), GatedLearner(spec)
        self.frozen: GatedLearner | None = None
        self.fates: Counter[str] = Counter()
        self.samples = Counter[str]()
        self.missing: Counter[str] = Counter()
        self.served_rows = 0
        self.waiting_fresh: list[pa.Table] = []
        self.waiting_daily: list[pa.Table] = []
        self.streamed = Streamed(spec)
        self.no_vectors = served_schema(spec).empty_table()
        zone = ZoneInfo(spec.timezone)
        self.first_day = _local(self.arrival_us[0], zone)
        days = (self.arrival_us[-1] - self.arrival_us[0]) / _DAY_US
        self.frozen_rule = "first month" if days >= _MONTH_FROM_DAYS else "first day"
        self.frozen_us = _cutoff(self.first_day, self.frozen_rule, zone)
        self.suite_every = max(1, int(days / _SUITE_CHECKS))
        self.day_number = 0

    def days(self) -> Iterator[tuple[int, str]]:
        """Replay day by day; yields the records done and the day."""
        zone = ZoneInfo(self.spec.timezone)
        start = 0
        while start < len(self.arrival_us):
            day = _local(self.arrival_us[start], zone)
            begin_us = _midnight(day, zone)
            end_us = _midnight(day + timedelta(days=1), zone)
            stop = int(np.searchsorted(self.arrival_us, end_us, side="left"))
            if start:
                self._emit(self.no_vectors, begin_us)  # what a gap before this day made known
            self._day(start, stop, begin_us, end_us)
            start = stop
            yield stop, f"{self.spec.line} {day:%Y-%m-%d}"
        # every label that the file holds has come
        last_us = int(self.arrival_us[-1]) + self.labelled.horizon_us + _DAY_US
        self._emit(self.no_vectors, last_us)
        self.places[self.labelled.pending_offsets()] += 1

    def _day(self, start: int, stop: int, begin_us: int, end_us: int) -> None:
        self._settle_frozen(begin_us)
        events = self.events.slice(start, stop - start)
        self.windows.append(self.ahead.resolve(events))
        self.ahead.emit(self.no_vectors, end_us)
        shown = np.flatnonzero(self.is_shown[start:stop]) + start
        vectors = self._vectors(shown)
        for name, learner in (("daily", self.daily), ("frozen", self.frozen or self.daily)):
            if shown.size and (name == "daily" or self.frozen is not None):
                self.predictions[name][shown] = learner.model.predict(vectors)
            elif shown.size:
                self.predictions[name][shown] = self.predictions["daily"][shown]
        step = min(self.spec.cadence.incremental, _DAY_US)
        number = (self.arrival_us[start:stop] - begin_us) // step
        cuts = np.flatnonzero(np.diff(number)) + 1
        for first, last in zip([0, *cuts], [*cuts, stop - start], strict=True):
            at_us = min(begin_us + (int(number[first]) + 1) * step, end_us)
            self._interval(start + int(first), start + int(last), at_us, shown, vectors)
        self._emit(self.no_vectors, end_us)
        self._learn_fresh()
        if self.waiting_daily:
            self.daily.learn(pa.concat_tables(self.waiting_daily).combine_chunks())
            self.waiting_daily = []
        self.daily.settle()
        self.fresh.settle()
        self.windows.expire(end_us - self.spec.longest_window_us)
        self.day_number += 1

    def _interval(self, start: int, stop: int, at_us: int, shown: Ints, vectors: pa.Table) -> None:
        """Predict what is shown, then learn what is known by the end of the interval."""
        low, high = (int(place) for place in np.searchsorted(shown, [start, stop]))
        served = vectors.slice(low, high - low)
        if served.num_rows:
            rows = shown[low:high]
            self.predictions["fresh"][rows] = self.fresh.model.predict(served)
        self.labelled.resolve(self.events.slice(start, stop - start))
        self._emit(served, at_us)
        self._learn_fresh()

    def _emit(self, served: pa.Table, at_us: int) -> None:
        emitted = self.labelled.emit(served, at_us)
        self.fates.update(emitted.fates["fate"].to_pylist())
        self.places[emitted.fates["offset"].to_numpy()] += 1
        samples = emitted.samples
        if not samples.num_rows:
            return
        offsets = samples["impression_offset"].to_numpy()
        self.labels[offsets] = samples["label"].to_numpy()
        first = samples["revision"].to_numpy() == 0
        self.places[offsets[first]] += 1
        engaged = samples["engagement_offset"].to_numpy()
        self.places[engaged[engaged >= 0]] += 1
        corrections = int((~first).sum())
        self.samples.update(samples=samples.num_rows, corrections=corrections)
        self.waiting_fresh.append(samples)
        self.waiting_daily.append(samples)

    def _learn_fresh(self) -> None:
        rows = sum(samples.num_rows for samples in self.waiting_fresh)
        if rows < self.spec.gates.data.min_rows:
            return
        window = pa.concat_tables(self.waiting_fresh).combine_chunks()
        self.waiting_fresh = []
        gates = self.fresh.gates
        if self.day_number // self.suite_every >= gates.suite_checks:
            from headrace import quality

            gates.suite_checks += 1
            report = quality.check(self.spec, window)
            agrees = report.passed == (not window_reasons(self.spec, window))
            gates.suite_disagreements += not agrees
        self.fresh.learn(window)

    def _settle_frozen(self, now_us: int) -> None:
        if self.frozen is None and now_us >= self.frozen_us:
            self.frozen = GatedLearner(self.spec)
            self.frozen.model.load_state(self.daily.model.state())

    def _vectors(self, shown: Ints) -> pa.Table:
        """Served rows (`served_schema`) of these impressions, windows exact at each one's time."""
        rows = self.events.take(pa.array(shown))
        at_us = self.arrival_us[shown]
        declared = rows.select(list(self.spec.columns))
        values = self.windows.values(declared, at_us)
        table = declared.append_column("request_at", pa.array(at_us))
        for name in values.column_names:
            table = table.append_column(name, values[name])
        inputs = transform(self.spec, table)
        self._count_missing(rows.num_rows, declared, inputs)
        self.streamed.add(shown, values, inputs)
        at = pa.array(at_us).cast(TIME)
        given: dict[str, Any] = {
            "impression_id": rows["impression_id"],
            "request_id": pc.coalesce(rows["request_id"], rows["impression_id"]),
            "served_at": at,
            "version": pa.array(["replay"] * len(shown), pa.string()),
            "score": pa.array(np.full(len(shown), np.nan)),
            "arm": pa.nulls(len(shown), pa.string()),
            "propensity": pa.nulls(len(shown), pa.float64()),
            "fallback": pa.nulls(len(shown), pa.string()),
            **{f"{view}__at": at for view in self.spec.views},
        }
        for part in (declared, values, inputs):
            given |= {name: part[name] for name in part.column_names}
        schema = served_schema(self.spec)
        served = pa.table([given[item.name] for item in schema], schema=schema)
        return served.combine_chunks()

    def _count_missing(self, rows: int, declared: pa.Table, inputs: pa.Table) -> None:
        self.served_rows += rows
        for name in declared.column_names:
            self.missing[name] += declared[name].null_count
        for item in input_fields(self.spec):
            column = inputs[item.name].to_numpy()
            gone = np.isnan(column) if pa.types.is_floating(item.type) else column == -1
            self.missing[item.name] += int(gone.sum())

    def result(self, counts: SourceCounts) -> dict[str, Any]:
        """The report. Scores are on impressions that got a label, identical for all policies."""
        scored = np.flatnonzero(self.labels >= 0)
        if not scored.size:
            raise InputError(
                f"line {self.spec.line!r}: none of {counts.impressions} impressions got a label; "
                "check source.label, label.outcome and label.attribution_window"
            )
        labels = self.labels[scored]
        days = _days(self.arrival_us[scored], self.spec.timezone)
        predicted = {name: values[scored] for name, values in self.predictions.items()}
        policies = {name: scores(labels, predicted[name], days) for name in POLICIES}
        compared = comparisons(
            labels, predicted, days, self.spec.gates.model.confidence, self.spec.seed
        )
        later = self.arrival_us[scored] >= self.frozen_us
        after = {}
        if later.any():
            for name, values in predicted.items():
                figures = scores(labels[later], values[later], days[later])
                after[name] = {key: figures[key] for key in ("logloss", "auc", "calibration")}
        return {
            "line": self.spec.line,
            "rows": int(scored.size),
            "label_rate": float(labels.mean()),
            "policies": policies,
            "after_freeze": {"rows": int(later.sum()), "policies": after},
            "comparisons": compared,
            "explanation": explanation(policies, compared),
            "training": self._training(),
            "parity": self.streamed.compared(self.events),
            "features": {
                name: {"missing_share": count / max(1, self.served_rows)}
                for name, count in sorted(self.missing.items())
            },
            "counts": self._counts(counts, int(scored.size)),
        }

    def _training(self) -> dict[str, Any]:
        return {
            "note": "all policies share the features, whose windows are always fresh; "
            "they differ in training only",
            "incremental_s": self.spec.cadence.incremental / 1e6,
            "frozen_rule": self.frozen_rule,
            "frozen_from": str(np.datetime64(self.frozen_us, "us")) + "Z",
            "gates": {"fresh": self.fresh.gates.as_dict(), "daily": self.daily.gates.as_dict()},
        }

    def _counts(self, counts: SourceCounts, scored: int) -> dict[str, Any]:
        """Every row of the file, then every impression of the log, in exactly one place each."""
        duplicates = self.fates["duplicate_impression"]
        return {
            **counts.as_dict(),
            "scored": scored,
            "without_label": counts.impressions - scored - duplicates,
            **self.samples,
            "fates": dict(sorted(self.fates.items())),
            "pending": len(self.labelled.pending_offsets()),
            "unaccounted": int((self.places != 1).sum()),
        }


def _local(at_us: int, zone: ZoneInfo) -> datetime:
    """Wall-clock time in the zone."""
    return datetime.fromtimestamp(int(at_us) // 1_000_000, tz=zone)


def _midnight(moment: datetime, zone: ZoneInfo) -> int:
    """Microseconds of the day's first instant; a midnight that the clocks skip moves on."""
    first = datetime(moment.year, moment.month, moment.day, tzinfo=zone)
    return int(first.timestamp()) * 1_000_000


def _cutoff(first_day: datetime, rule: str, zone: ZoneInfo) -> int:
    if rule == "first day":
        return _midnight(first_day + timedelta(days=1), zone)
    month = first_day.month % 12 + 1
    year = first_day.year + (month == 1)
    same = min(first_day.day, calendar.monthrange(year, month)[1])
    return _midnight(datetime(year, month, same, tzinfo=zone), zone)


def _days(at_us: Ints, timezone: str) -> NDArray[np.str_]:
    """ISO dates in the zone."""
    local = pa.array(at_us).cast(pa.timestamp("us", tz=timezone))
    return np.asarray(pc.strftime(local, "%Y-%m-%d").to_numpy(zero_copy_only=False), dtype="U10")
