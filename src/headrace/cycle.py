"""The cycle: plan a window, gate its data, train, evaluate, promote, and record how it ended.

`run` does all of it in one process. The Kubeflow components call the same steps (`begin`,
`train.train`, `evaluate.evaluate`, `conclude`), each in a process of its own. Every cycle, whatever
its end, leaves one record (see `headrace.records`), whose names are this module's too.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from headrace import alarms, train, turns
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.line import LineStore
from headrace.records import (
    Cycle,
    Kind,
    Outcome,
    find_record,
    new_run,
    record,
    records,
    started,
)
from headrace.sample import (
    Quarantine,
    count_samples,
    head_tick,
    read_tick,
    sample_parts,
    tick_as_of,
)
from headrace.settings import Settings
from headrace.slices import even, without_short_end

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from headrace.baseline import Figures
    from headrace.quality import DataReport

__all__ = [
    "Cycle",
    "Interval",
    "Kind",
    "Outcome",
    "Progress",
    "begin",
    "check_data",
    "conclude",
    "find_record",
    "handle",
    "learn",
    "new_run",
    "plan",
    "plan_full",
    "record",
    "recorded",
    "records",
    "resumed",
    "run",
    "started",
]

CHECK_ROWS: Final = 1 << 18
_HANDLE: Final = re.compile(r"(run-\d+)\.(\d+)-(\d+)")


@dataclass(frozen=True)
class Interval:
    """Ticks `[from_tick, to_tick)` to learn."""

    from_tick: int
    to_tick: int


def handle(cycle: Cycle) -> str:
    """The id that pipeline steps hand on: the run and its window, `run-<us>.<from>-<to>`."""
    if cycle.interval is None:
        raise InputError(f"{cycle.run} has no window to hand on; begin the cycle first")
    return f"{cycle.run}.{cycle.interval[0]}-{cycle.interval[1]}"


def resumed(given: str, kind: str, stage: str, version: str | None = None) -> Cycle:
    """The cycle behind a `handle`, at that stage. Raises `InputError` for another text."""
    match = _HANDLE.fullmatch(given)
    if match is None:
        raise InputError(f"cycle={given!r} is not a handle; pass on what check_data returned")
    interval = (int(match[2]), int(match[3]))
    return replace(started(match[1], kind), interval=interval, stage=stage, version=version)


def plan(settings: Settings, spec: LineSpec) -> Interval | None:
    """Ticks `[champion's end, head)`, or None while they hold under `gates.data.min_rows` samples,
    or are a living learner's to learn, or the line is frozen.

    Quarantined ticks inside are skipped by everything that reads the interval. An alarm is raised
    where the source has gone silent or odd, whatever there is to learn. Raises `InputError` without
    a champion: the first version comes from a full training.
    """
    home = settings.line_home(spec.line)
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    champion = store.champion()
    if champion is None:
        raise InputError(f"line {spec.line!r} has no champion to continue; run full_train first")
    look_at_source(settings, spec)
    start, head = store.get(champion.version).to_tick, head_tick(home)
    if start >= head or turns.alive(home) or turns.frozen(home) is not None:
        return None
    samples = count_samples(home, start, head, train.quarantined(settings, spec, start, head))
    return Interval(start, head) if samples >= spec.gates.data.min_rows else None


def plan_full(settings: Settings, spec: LineSpec) -> Interval | None:
    """Ticks of all history but the hold-out, or None while there are none."""
    end = train.holdout_from(settings, spec)
    return Interval(0, end) if end > 0 else None


def check_data(
    settings: Settings, spec: LineSpec, from_tick: int, to_tick: int, quarantine: bool = True
) -> DataReport:
    """Put the window through the data gate, store the report, and quarantine what fails.

    `quarantine=False` leaves a failed window where it is (a full training reads all history). A
    window of more than `CHECK_ROWS` rows is checked part by part, so that memory is bounded.
    A window is compared with the rows before it, a whole history with nothing. Where it continues
    one that has passed, what is new is checked by itself: if that fails, it goes to quarantine
    alone, with the rows before it in which the gate could not have seen the same yet, and the
    report is on what is left, unless that is too little to learn. Rows that broke a rule are kept
    beside the reasons, and an alarm is raised.
    """
    from headrace import quality  # `plan`, the scheduled question, needs no pandas

    home, least = settings.line_home(spec.line), spec.gates.data.min_rows
    new = quality.passed_until(home, from_tick, to_tick) if quarantine else from_tick
    refused = None
    if new > from_tick:  # what passed before would dilute what is bad and new
        doubtful = _doubtful_from(spec, home, from_tick, new)
        tail = _check(settings, spec, new, to_tick, named_from=doubtful)
        if not tail.passed and tail.statistics["rows"] >= least:
            _refuse(settings, spec, doubtful, to_tick, tail)
            refused = tail
    report = _check(settings, spec, from_tick, to_tick)
    if refused is not None and report.statistics["rows"] < least:
        report = refused
    excluded = train.quarantined(settings, spec, from_tick, to_tick)
    quality.keep(home, from_tick, to_tick, excluded, report)
    if not report.passed and quarantine and report is not refused:
        _refuse(settings, spec, from_tick, to_tick, report)
    return report


def _refuse(
    settings: Settings, spec: LineSpec, from_tick: int, to_tick: int, report: DataReport
) -> None:
    from headrace import baseline

    home = settings.line_home(spec.line)
    Quarantine(home).add(from_tick, to_tick, report.reasons, report.failed_rows)
    if (why := baseline.contradiction(report.reasons)) is not None:
        turns.freeze(home, why)
    body = {"ticks": [from_tick, to_tick], "reasons": report.reasons}
    alarms.raise_alarm(settings, spec.line, "quarantine", body)


def _doubtful_from(spec: LineSpec, home: Path, from_tick: int, refused: int) -> int:
    """The tick, from `from_tick` on, from which on the gate could not have seen yet what it then
    refused: fewer rows than it needs, or labels of which only the clicks had come.
    """
    young_us = read_tick(home, refused - 1).at_us - (spec.label.provisional_after or 0)
    first, rows = refused, spec.gates.data.min_rows
    while first > from_tick and rows > 0:
        first -= 1
        rows -= read_tick(home, first).counts.get("samples", 0)
    return max(min(first, tick_as_of(home, young_us)), from_tick)


def _check(
    settings: Settings, spec: LineSpec, from_tick: int, to_tick: int, named_from: int | None = None
) -> DataReport:
    """The data gate's report on the ticks; a whole history has nothing before it.

    `named_from`: where the interval begins that is refused if they fail, which names its page.
    """
    from headrace import quality, recent

    home = settings.line_home(spec.line)
    excluded = train.quarantined(settings, spec, from_tick, to_tick)

    def measure(part: pa.Table) -> Figures:
        if not from_tick:
            return {}
        return recent.figures(spec, home, from_tick, to_tick, part, exclude=excluded)

    samples = sample_parts(spec, home, from_tick, to_tick, excluded)
    parts = without_short_end(even(samples, CHECK_ROWS), CHECK_ROWS // 2)
    begins = from_tick if named_from is None else named_from
    docs = home / "quarantine" / "docs" / f"{begins}-{to_tick}"
    return quality.check_parts(spec, parts, measure, docs)


def look_at_source(settings: Settings, spec: LineSpec) -> list[str]:
    """Raise an alarm when the newest `cadence.incremental` of events is unlike the time before.

    A volume that fell or rose, an event kind that stopped, many duplicates or refusals: the rows
    may be sound, so nothing is held back. The same symptoms are told once until they end.
    """
    from headrace import recent

    home = settings.line_home(spec.line)
    told = recent.symptoms(spec, home, time.time_ns() // 1_000)
    kinds, path = sorted({each.split(":", 1)[0] for each in told}), home / "guard" / "source.json"
    before = json.loads(path.read_text(encoding="utf-8"))["kinds"] if path.is_file() else []
    if kinds != before:
        write_json(path, {"kinds": kinds, "symptoms": told})
        if kinds:
            alarms.raise_alarm(settings, spec.line, "source", {"symptoms": told})
    return told


def begin(settings: Settings, spec: LineSpec, cycle: Cycle) -> Cycle:
    """Plan and check the window. The cycle has ended (and is recorded) unless `stage` is train."""
    interval = (plan if cycle.kind == "incremental" else plan_full)(settings, spec)
    if interval is None:
        why = f"nothing to learn: fewer than {spec.gates.data.min_rows} new samples"
        if cycle.kind == "incremental" and turns.alive(settings.line_home(spec.line)):
            why = "the learner takes the new samples"
        elif (frozen := turns.frozen(settings.line_home(spec.line))) is not None:
            why = f"frozen: {frozen}"
        return record(settings, spec, replace(cycle, outcome="idle", reasons=(why,)))
    cycle = replace(cycle, interval=(interval.from_tick, interval.to_tick))
    report = check_data(
        settings,
        spec,
        interval.from_tick,
        interval.to_tick,
        quarantine=cycle.kind == "incremental",
    )
    if report.passed:
        return replace(cycle, stage="train")
    cycle = replace(cycle, outcome="rejected", reasons=tuple(report.reasons))
    return record(settings, spec, cycle)


def learn(settings: Settings, spec: LineSpec, cycle: Cycle, *, workers: int = 1) -> Cycle:
    """Train the candidate of a cycle whose window passed, in full by so many `workers`."""
    if cycle.interval is None:
        raise InputError(f"{cycle.run} has no window; begin the cycle first")
    start, end = cycle.interval
    if cycle.kind == "incremental":
        version = train.incremental(settings, spec, start, end)
    else:
        version = train.full(settings, spec, end, workers=workers)
    return replace(cycle, version=version, stage="evaluate")


def conclude(settings: Settings, spec: LineSpec, cycle: Cycle, candidate: str) -> Cycle:
    """Promote or reject the candidate and record the end of the cycle."""
    from headrace import promote, tracking

    cycle = replace(cycle, version=candidate, stage="promote")
    verdict = promote.promote(settings, spec, candidate)
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    mirrored = tracking.status(store) if settings.mlflow_uri else None
    lost_swap = "champion_unmoved" in verdict.failed
    return record(
        settings,
        spec,
        replace(
            cycle,
            outcome="promoted" if verdict.passed else "rejected",
            stage="promote" if verdict.passed or lost_swap else "model",
            reasons=verdict.reasons,
            unmirrored=None if mirrored is None else mirrored.problem,
        ),
    )


def run(
    settings: Settings, spec: LineSpec, kind: Kind = "incremental", wait_s: float = 30.0
) -> Cycle:
    """One whole cycle in this process. An error is recorded as `failed` and raised again.

    `wait_s` bounds the wait for evaluation rows that arrive after the window.
    """
    from headrace import evaluate

    cycle = started(new_run(), kind)
    with recorded(settings, spec, cycle) as progress:
        cycle = progress.step(begin(settings, spec, cycle))
        if cycle.stage != "train":
            return cycle
        cycle = progress.step(learn(settings, spec, cycle))
        assert cycle.version is not None
        evaluate.evaluate(settings, spec, cycle.version, wait_s)
        return conclude(settings, spec, cycle, cycle.version)


class Progress:
    """The newest state of a running cycle, for the record if it fails."""

    def __init__(self, cycle: Cycle) -> None:
        self.cycle = cycle

    def step(self, cycle: Cycle) -> Cycle:
        """Note how far the cycle is, and return it."""
        self.cycle = cycle
        return cycle


@contextmanager
def recorded(settings: Settings, spec: LineSpec, cycle: Cycle) -> Iterator[Progress]:
    """Record the cycle as failed, with the error, when the block raises; then raise it again."""
    progress = Progress(cycle)
    try:
        yield progress
    except Exception as problem:
        why = f"{type(problem).__name__}: {problem}"
        record(settings, spec, replace(progress.cycle, outcome="failed", reasons=(why,)))
        raise
