"""Search a line's declared space for a better model, by successive halving.

Every trial learns the samples of the same ticks from scratch and is measured on the same later
ticks, which none has learned. The model as it is takes part in each rung, so what it would have
got is known. Each result is a file below `<line home>/tune/<name>/`, written whole: a step that
is repeated finds it and does no work. The best becomes a challenger in shadow; only a race can
make it champion (docs/adr/0041).
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import contest, metrics, train
from headrace.atomic import write_json
from headrace.declaration import LineSpec, TuneSpec
from headrace.errors import ConflictError, DeclarationError, InputError
from headrace.evaluate import first_seen
from headrace.labels.revisions import thin_negatives, unsettled
from headrace.sample import count_samples, head_tick, read_samples
from headrace.settings import Settings

ARM: Final = "tuned"
SHARES: Final = (0.25, 0.5, 1.0)
"""Of the newest history, that the trials of each rung learn."""
MOST_ROWS: Final = 1_000_000
"""Samples that the last rung learns at most: they are held in memory."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_HANDLE: Final = re.compile(r"(.+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Plan:
    """A search: ticks `[from_tick, split)` to learn, `[split, head)` to measure on; the trials,
    each as the keys of the model that it declares otherwise. The first is the model as it is.
    """

    name: str
    from_tick: int
    split: int
    head: int
    trials: list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """How a search ended. `version`: of the challenger, None where nothing was better.

    `low`, `high`: of the paired difference in log loss to the model as it is, in nats.
    """

    name: str
    model: dict[str, Any]
    logloss: float
    before: float
    low: float
    high: float
    version: str | None
    reason: str


def begin(settings: Settings, spec: LineSpec, name: str) -> list[str]:
    """Plan the search of that name, once; returns the handles of the first rung's trials.

    Raises `DeclarationError` where the line declares no search or one that makes no model,
    `InputError` where there is too little history.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"name={name!r} is no name of a search; use a-z, 0-9 and dashes")
    declared = spec.tune
    if declared is None:
        raise DeclarationError(f"line {spec.line!r} declares no search; add `tune: {{space: …}}`")
    path = _folder(settings, spec, name) / "plan.json"
    if not path.exists():
        trials = [{}, *combinations(declared, spec.seed)]
        for trial in trials:
            _variant(spec, trial)
        write_json(path, asdict(_planned(settings, spec, name, trials)))
    return [f"{name}.0.{trial}" for trial in range(len(read_plan(settings, spec, name).trials))]


def combinations(declared: TuneSpec, seed: int) -> list[dict[str, Any]]:
    """At most `trials` points of the space, all of it where it is no larger; seeded."""
    names = sorted(declared.space)
    size = math.prod(len(declared.space[name]) for name in names)
    if size <= declared.trials:
        chosen = list(itertools.product(*(declared.space[name] for name in names)))
        return [dict(zip(names, values, strict=True)) for values in chosen]
    points = np.random.default_rng(seed).choice(size, declared.trials, replace=False)
    found = []
    for point in np.sort(points):
        values, rest = {}, int(point)
        for name in names:
            rest, at = divmod(rest, len(declared.space[name]))
            values[name] = declared.space[name][at]
        found.append(values)
    return found


def attempt(settings: Settings, spec: LineSpec, handle: str) -> str:
    """Train and measure one trial on one rung, unless that is done; returns the handle."""
    from headrace.model import Model

    name, rung, trial = _parsed(handle)
    path = _result(settings, spec, name, rung, trial)
    if path.exists():
        return handle
    plan = read_plan(settings, spec, name)
    own = _variant(spec, plan.trials[trial])
    start = plan.split - max(1, math.ceil((plan.split - plan.from_tick) * SHARES[rung]))
    window = train.window_samples(
        settings, own, max(start, plan.from_tick), plan.split, latest=True
    )
    model = Model(own.model, own.seed, "correct", conversion=own.converts)
    rows = thin_negatives(own, window.samples)
    for _ in range(own.model.epochs):
        model.learn(rows)
    exclude = train.quarantined(settings, spec, plan.split, plan.head)
    home = settings.line_home(spec.line)
    later = read_samples(spec, home, plan.split, plan.head, exclude=exclude)
    later = first_seen(later.filter(pa.array(~unsettled(spec, later))))
    labels, predicted = later["label"].to_numpy(), model.predict_tasks(later)["click"]
    losses = metrics.row_losses(labels, predicted)
    body = {
        "model": plan.trials[trial],
        "rows": rows.num_rows,
        "logloss": float(losses.mean()) if losses.size else None,
        "auc": metrics.auc(labels, predicted),
        "calibration": metrics.calibration(labels, predicted),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), losses)
    write_json(path, body)  # last: with it the trial is done
    return handle


def halve(settings: Settings, spec: LineSpec, handles: Sequence[str]) -> list[str]:
    """The handles of the next rung: the better half of these trials, and the model as it is."""
    parsed = [_parsed(handle) for handle in handles]
    name, rung = parsed[0][0], parsed[0][1]
    order = sorted((_loss(settings, spec, name, rung, trial), trial) for _, _, trial in parsed)
    kept = [trial for _, trial in order if trial][: max(1, (len(parsed) - 1) // 2)]
    return [f"{name}.{rung + 1}.{trial}" for trial in (0, *sorted(kept))]


def conclude(settings: Settings, spec: LineSpec, handles: Sequence[str]) -> Found:
    """Let the best of the last rung race in shadow if it beat the model as it is; record it."""
    parsed = [_parsed(handle) for handle in handles]
    name, rung = parsed[0][0], parsed[0][1]
    if (known := found(settings, spec, name)) is not None:
        return known
    assert spec.tune is not None
    trial = min((_loss(settings, spec, name, rung, t), t) for _, _, t in parsed if t)[1]
    best, base = (_read(settings, spec, name, rung, at) for at in (trial, 0))
    losses = [_losses(settings, spec, name, rung, at) for at in (trial, 0)]
    mean, low, high = metrics.paired_bootstrap(
        losses[0], losses[1], spec.tune.confidence, spec.seed
    )
    version, reason = None, f"{best['logloss']:.5f} against {base['logloss']:.5f} is no proof"
    if high < 0:
        version, reason = _challenge(settings, spec, name, best["model"], mean)
    figures = {"logloss": best["logloss"], "before": base["logloss"], "low": low, "high": high}
    ended = Found(name, best["model"], version=version, reason=reason, **figures)
    write_json(_folder(settings, spec, name) / "found.json", asdict(ended))
    return ended


def found(settings: Settings, spec: LineSpec, name: str) -> Found | None:
    """How the search of that name ended, None while it has not (or lies elsewhere)."""
    path = _folder(settings, spec, name) / "found.json"
    return Found(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def read_plan(settings: Settings, spec: LineSpec, name: str) -> Plan:
    """The plan of a search. Raises `InputError` where there is none."""
    path = _folder(settings, spec, name) / "plan.json"
    if not path.exists():
        raise InputError(f"{path}: no such search; begin it first")
    return Plan(**json.loads(path.read_text(encoding="utf-8")))


def _planned(settings: Settings, spec: LineSpec, name: str, trials: list[dict[str, Any]]) -> Plan:
    home = settings.line_home(spec.line)
    head = head_tick(home)
    split = head - math.ceil(head * train.HOLDOUT_SHARE)
    start, rows = split, 0
    while start > 0 and rows < MOST_ROWS:
        start -= 1
        rows += count_samples(home, start, start + 1)
    if rows < spec.gates.data.min_rows:
        raise InputError(
            f"line {spec.line!r} has {rows} samples to search with and gates.data.min_rows is "
            f"{spec.gates.data.min_rows}; wait for more"
        )
    return Plan(name, start, split, head, trials)


def _challenge(
    settings: Settings, spec: LineSpec, name: str, model: dict[str, Any], gain: float
) -> tuple[str | None, str]:
    arm = {"name": ARM, "mode": "shadow", "follow": True, "model": model}
    own = contest.variant(spec, contest.make_arm(**arm, version="v000000"))
    version = train.full(settings, own)
    told = f"{name}: {-gain:.5f} nats better than the model as it is"
    try:
        contest.Contest(settings, spec).start(
            [contest.make_arm(**arm, version=version)], None, None, told
        )
    except ConflictError as problem:  # somebody changed the race at that moment
        return version, f"{told}; not racing: {problem}"
    return version, told


def _variant(spec: LineSpec, model: dict[str, Any]) -> LineSpec:
    arm = contest.make_arm(name=ARM, version="v000000", mode="shadow", model=model)
    return contest.variant(spec, arm)


def _loss(settings: Settings, spec: LineSpec, name: str, rung: int, trial: int) -> float:
    """The trial's log loss; infinite where it has none, so that it never wins."""
    loss = _read(settings, spec, name, rung, trial)["logloss"]
    return math.inf if loss is None or math.isnan(loss) else float(loss)


def _read(settings: Settings, spec: LineSpec, name: str, rung: int, trial: int) -> dict[str, Any]:
    path = _result(settings, spec, name, rung, trial)
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def _losses(
    settings: Settings, spec: LineSpec, name: str, rung: int, trial: int
) -> NDArray[np.float64]:
    """Of each row that was measured on, in nats."""
    rows: NDArray[np.float64] = np.load(
        _result(settings, spec, name, rung, trial).with_suffix(".npy")
    )
    return rows


def _parsed(handle: str) -> tuple[str, int, int]:
    match = _HANDLE.fullmatch(handle)
    if match is None or not _NAME.fullmatch(match[1]) or int(match[2]) >= len(SHARES):
        raise InputError(f"{handle!r} is no trial's handle; pass on what the step before returned")
    return match[1], int(match[2]), int(match[3])


def _folder(settings: Settings, spec: LineSpec, name: str) -> Path:
    return settings.line_home(spec.line) / "tune" / name


def _result(settings: Settings, spec: LineSpec, name: str, rung: int, trial: int) -> Path:
    return _folder(settings, spec, name) / f"rung-{rung}" / f"{trial}.json"
