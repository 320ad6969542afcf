"""Is the world of a line still the one that its past shows? Inputs, scores, label delay, loss.

The newest `drift.window` is held against the rows before it. What drifted is told, and leads to
what the line's YAML says: an alarm, a full retrain, or a line that learns nothing more until a
person thaws it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import alarms, baseline, change, metrics, turns
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.labels.revisions import newest, unsettled
from headrace.recent import rows_before
from headrace.sample import head_tick, read_samples, tick_as_of
from headrace.settings import Settings
from headrace.train import quarantined

BATCH: Final = 50
"""Rows whose mean loss is one value of the test: their mean is nearly normal, and rows of a request
stay together mostly."""
DAY_S: Final = 86_400.0
STRETCHES: Final = baseline.FEWEST + 2
"""Windows of the past that the newest one is compared with, or the reference of the data gate if
that is more: of fewer than `baseline.FEWEST` stretches nothing could be said.
"""


@dataclass(frozen=True)
class Drift:
    """What was seen. `figures`: by what is compared, its `psi`, its limit, and `ks` of numbers;
    `drifted`: kinds of drift (inputs, score, delay, concept) with a sentence for each finding;
    `outcome`: the sternest that they lead to, `none` without.
    """

    from_tick: int
    to_tick: int
    rows: int
    reference_rows: int
    figures: dict[str, dict[str, float | None]] = field(default_factory=dict)
    concept: dict[str, float | None] = field(default_factory=dict)
    drifted: dict[str, list[str]] = field(default_factory=dict)
    outcome: str = "none"


def look(settings: Settings, spec: LineSpec, now_us: int | None = None) -> Drift:
    """Hold the newest window against the rows before it; nothing is told to anyone."""
    home = settings.line_home(spec.line)
    head = head_tick(home)
    now_us = time.time_ns() // 1_000 if now_us is None else now_us
    first = min(tick_as_of(home, now_us - spec.drift.window), head)
    excluded = quarantined(settings, spec, first, head)
    samples = read_samples(spec, home, first, head, exclude=excluded)
    past = rows_before(spec, home, first, STRETCHES * samples.num_rows)
    return compare(spec, past, samples, (first, head))


def compare(
    spec: LineSpec, past: pa.Table, samples: pa.Table, ticks: tuple[int, int] = (0, 0)
) -> Drift:
    """The same of given rows (`sample_schema`, stream order). Pure."""
    if not past.num_rows or not samples.num_rows:
        return Drift(*ticks, samples.num_rows, past.num_rows)
    rows = newest(samples.filter(pa.array(~unsettled(spec, samples))))
    reference = baseline.Reference(spec, past)
    found = reference.drift(rows, spec.drift.max_shift)
    before, now = dict(baseline.columns(spec, reference.rows)), dict(baseline.columns(spec, rows))
    figures: dict[str, dict[str, float | None]] = {}
    drifted: dict[str, list[str]] = {}
    for name, figure in found.items():
        number = np.issubdtype(now[name].dtype, np.floating)
        distance = _distance(before[name], now[name]) if number else None
        figures[name] = {"psi": figure.value, "limit": figure.limit, "ks": distance}
        if figure.value > figure.limit:
            kind = {baseline.SCORE: "score", baseline.DELAY: "delay"}.get(name, "inputs")
            sentence = f"{name}: index {figure.value:.3f}, must be at most {figure.limit:.3f}"
            drifted.setdefault(kind, []).append(sentence)
    concept, risen = _concept(spec, reference.rows, rows)
    if risen is not None:
        drifted["concept"] = [risen]
    return Drift(
        *ticks,
        rows=rows.num_rows,
        reference_rows=reference.rows.num_rows,
        figures=figures,
        concept=concept,
        drifted=drifted,
        outcome=_outcome(spec, drifted),
    )


def act(settings: Settings, spec: LineSpec, seen: Drift) -> None:
    """Do what the line declares for what was seen, but start the retrain: that is the caller's.

    `guard/drift.json` holds the newest look. The same kinds of drift are told once until they end.
    """
    home = settings.line_home(spec.line)
    path = home / "guard" / "drift.json"
    before = told(settings, spec)
    write_json(path, asdict(seen))
    if set(seen.drifted) <= set((before or {}).get("drifted", {})):
        return
    reasons = [each for kind in seen.drifted.values() for each in kind]
    if seen.outcome == "freeze":
        turns.freeze(home, f"drift: {'; '.join(reasons)}")
    body = {"outcome": seen.outcome, "ticks": [seen.from_tick, seen.to_tick], "reasons": reasons}
    alarms.raise_alarm(settings, spec.line, "drift", body)


def told(settings: Settings, spec: LineSpec) -> dict[str, Any] | None:
    """The newest look that `act` was told of, None without one."""
    import json

    path = settings.line_home(spec.line) / "guard" / "drift.json"
    if not path.is_file():
        return None
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def _outcome(spec: LineSpec, drifted: dict[str, list[str]]) -> str:
    wanted = {getattr(spec.drift, kind) for kind in drifted}
    return next((each for each in ("freeze", "retrain", "alarm") if each in wanted), "none")


def _concept(
    spec: LineSpec, past: pa.Table, rows: pa.Table
) -> tuple[dict[str, float | None], str | None]:
    """Whether the loss of what was served (prequential: scored before the label was known) rose."""
    reference, values = _losses(past), _losses(rows)
    a_day = values.size * DAY_S / (spec.drift.window / 1e6)
    rate = min(spec.drift.max_false_alarms / max(a_day, 1.0), 0.5)
    found = change.risen(reference, values, rate)
    figures: dict[str, float | None] = {
        "loss_before": float(reference.mean()) if reference.size else None,
        "loss": float(values.mean()) if values.size else None,
        "statistic": found.statistic,
        "threshold": found.threshold,
    }
    if found.at is None:
        return figures, None
    return figures, (
        f"log loss rose from {figures['loss_before']:.4f} to {figures['loss']:.4f}, surely after "
        f"{(found.at + 1) * BATCH} rows"
    )


def _losses(rows: pa.Table) -> NDArray[np.float64]:
    """Mean loss of each `BATCH` rows that a model scored, in stream order."""
    scored = rows.filter(pc.is_finite(rows["score"]))
    losses = metrics.row_losses(scored["label"].to_numpy(), scored["score"].to_numpy())
    whole = losses[: losses.size // BATCH * BATCH]
    means: NDArray[np.float64] = whole.reshape(-1, BATCH).mean(axis=1)
    return means


def _distance(before: NDArray[np.generic], now: NDArray[np.generic]) -> float | None:
    a, b = (column[~np.isnan(column)].astype(np.float64) for column in (before, now))
    found = metrics.ks(np.repeat([0, 1], [a.size, b.size]), np.concatenate([a, b]))
    return found if np.isfinite(found) else None
