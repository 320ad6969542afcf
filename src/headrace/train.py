"""Train a candidate version: incrementally from the champion, or in full from scratch.

Ticks are half-open `[from_tick, to_tick)`. Both read the same samples that the data gate
checked (`window_samples`) and publish a version; nothing here moves the champion.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.declaration import DelayedFeedback, LabelSpec, LineSpec, ModelSpec
from headrace.errors import ConflictError, DeclarationError, InputError
from headrace.events import event_schema, input_fields, offset_columns
from headrace.labels.revisions import newest, thin_negatives, unlearned
from headrace.line import About, LineStore, Version
from headrace.log.files import FileLog
from headrace.sample import Quarantine, head_tick, read_samples, tick_of
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.model import Model, State

Ticks = tuple[int, int]

HISTORY_ROWS: Final = 200_000
"""Up to so many rows a full training reads its features through Feast's point-in-time join."""
HOLDOUT_SHARE: Final = 0.15
_NEWER_MODEL_KEYS: Final = (
    *("wide", "cross_layers", "cross_rank"),
    *("ids", "admit_after", "expire_after", "learning_rate_floor", "precision"),
)


@dataclass(frozen=True)
class Window:
    """Samples (`events.sample_schema`) of ticks `[from_tick, to_tick)` but the `excluded` ones."""

    from_tick: int
    to_tick: int
    excluded: list[Ticks]
    samples: pa.Table


def code_of(spec: LineSpec) -> str:
    """Package version and digest of what a state's meaning depends on: columns, label, windows,
    request features and model. Gates, cadence and source may change under a champion.
    """
    unsaid = {  # versions from before these keys stay valid
        part: {name for name in names if getattr(declared, name) == _default(declared, name)}
        for part, declared, names in (
            ("label", spec.label, ("delayed_feedback", "negative_rate", "conversion")),
            ("model", spec.model, _NEWER_MODEL_KEYS),
        )
    }
    meaning = spec.model_dump_json(
        include={"columns", "timezone", "label", "windows", "request_features", "model", "seed"},
        exclude=unsaid,
    )
    package = importlib.metadata.version("headrace")
    return f"headrace-{package}+{hashlib.sha256(meaning.encode()).hexdigest()[:12]}"


def _default(declared: LabelSpec | ModelSpec, name: str) -> object:
    return type(declared).model_fields[name].default


def quarantined(settings: Settings, spec: LineSpec, from_tick: int, to_tick: int) -> list[Ticks]:
    """Quarantined ticks inside `[from_tick, to_tick)`, clipped to it, in rising order."""
    intervals = Quarantine(settings.line_home(spec.line)).intervals()
    clipped = [(max(q["from"], from_tick), min(q["to"], to_tick)) for q in intervals]
    return sorted((start, end) for start, end in clipped if start < end)


def window_samples(
    settings: Settings, spec: LineSpec, from_tick: int, to_tick: int, latest: bool = False
) -> Window:
    """Samples of the ticks in stream order, without quarantined ones.

    A correction whose earlier rows all lie in quarantine takes nothing back: none was learned.
    """
    home = settings.line_home(spec.line)
    excluded = quarantined(settings, spec, from_tick, to_tick)
    samples = read_samples(spec, home, from_tick, to_tick, exclude=excluded, latest=latest)
    corrected = samples.filter(pc.greater(samples["revision"], 0))
    if corrected.num_rows and not latest:
        oldest = pc.min(corrected["impression_offset"]).as_py()
        skipped = quarantined(settings, spec, tick_of(home, oldest), to_tick)
        if skipped:
            parts = [read_samples(spec, home, start, end) for start, end in skipped]
            samples = unlearned(samples, pa.concat_tables(parts))
    return Window(from_tick, to_tick, excluded, samples)


def incremental(
    settings: Settings, spec: LineSpec, from_tick: int, to_tick: int, parent: str | None = None
) -> str:
    """Continue the champion, or the version `parent`, over the samples of `[from_tick, to_tick)`;
    returns the new version.

    Raises `ConflictError` when that version does not end at `from_tick` (the champion moved since
    the window was planned), `InputError` without samples, `DeclarationError` when it was trained
    under another declaration.
    """
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    if parent is None:
        champion = store.champion()
        if champion is None:
            raise InputError(
                f"line {spec.line!r} has no champion to continue; run full_train first"
            )
        parent = champion.version
    before, state = store.load(parent)
    require_same_code(spec, before)
    if before.to_tick != from_tick:
        raise ConflictError(
            f"version {before.version} ends at tick {before.to_tick}, but the window starts at "
            f"{from_tick}: the line moved on; plan again"
        )
    window = window_samples(settings, spec, from_tick, to_tick)
    model = _model(spec, spec.label.delayed_feedback)
    model.load_state(state)
    rows = thin_negatives(spec, window.samples)
    return _learn(settings, spec, model, rows, window=window, parent=(before, state), epochs=1)


def full(settings: Settings, spec: LineSpec, to_tick: int | None = None) -> str:
    """Train from scratch over `[0, to_tick)` (default: `holdout_from`); returns the version.

    Rows are the newest revision of each impression, so that no weighting of late ones is needed;
    of the negatives `label.negative_rate` are kept. Up to `HISTORY_ROWS` of them get their
    features by Feast's point-in-time join at the time they were served; beyond, the served
    vectors themselves are used.
    """
    end = holdout_from(settings, spec) if to_tick is None else to_tick
    window = window_samples(settings, spec, 0, end, latest=True)
    rows = thin_negatives(spec, window.samples)
    if rows.num_rows <= HISTORY_ROWS:
        rows = _joined(settings, spec, rows)
    epochs = spec.model.epochs
    return _learn(settings, spec, _model(spec), rows, window=window, parent=None, epochs=epochs)


def holdout_from(settings: Settings, spec: LineSpec) -> int:
    """First tick that a full training leaves for its evaluation.

    Without a champion the last 15% of all ticks are held out, or as many as
    `gates.model.min_rows` rows need. With one, only ticks that the champion has not learned
    either can serve: all of them if they hold enough rows, otherwise none (the evaluation then
    waits for new ticks).
    """
    home = settings.line_home(spec.line)
    head = head_tick(home)
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    champion = store.champion()
    need = spec.gates.model.min_rows
    if champion is not None:
        start = min(store.get(champion.version).to_tick, head)
        return start if read_samples(spec, home, start, head).num_rows >= need else head
    start = head - int(np.ceil(head * HOLDOUT_SHARE))
    while start > 0 and read_samples(spec, home, start, head).num_rows < need:
        start -= max(1, (head - start) // 2)
    return max(start, 0)


def require_same_code(spec: LineSpec, version: Version) -> None:
    """Raise `DeclarationError` when a version was trained under another declaration."""
    code = code_of(spec)
    if version.code != code:
        raise DeclarationError(
            f"version {version.version} of line {spec.line!r} was trained by {version.code}, the "
            f"declaration now gives {code}; give the changed line a new name, or undo the change"
        )


def _model(spec: LineSpec, feedback: DelayedFeedback = "correct") -> Model:
    from headrace.model import Model

    return Model(spec.model, spec.seed, feedback, conversion=spec.converts)


def _learn(
    settings: Settings,
    spec: LineSpec,
    model: Model,
    rows: pa.Table,
    *,
    window: Window,
    parent: tuple[Version, State] | None,
    epochs: int,
) -> str:
    """Learn `rows` (of the window's samples, perhaps with other features); publish the state."""
    samples = window.samples
    if not samples.num_rows:
        raise InputError(
            f"line {spec.line!r}: ticks {window.from_tick} to {window.to_tick} hold no samples to "
            "learn; wait for events or release them from quarantine"
        )
    for _ in range(epochs):
        report = model.learn(rows)
    version = LineStore(settings.line_store_url(spec.line), spec.line).publish(
        model.state(),
        parent=None if parent is None else parent[0].version,
        parent_state=None if parent is None else parent[1],
        **about(settings, spec, window, report.loss, None if parent is None else parent[0]),
    )
    return version.version


def about(
    settings: Settings, spec: LineSpec, window: Window, loss: float, parent: Version | None
) -> About:
    """What a version says of itself that learned a window (with rows) with this mean loss."""
    samples = window.samples
    watermark_us = _watermark_us(settings, spec, samples)
    event_at_us = int(pc.max(samples["event_at"]).cast(pa.int64()).as_py())
    if parent is not None:
        watermark_us = max(watermark_us, parent.watermark_us)
        event_at_us = max(event_at_us, parent.event_at_us)
    known = newest(samples)
    rates = {"label_rate": float(known["label"].to_numpy().mean())}
    if spec.converts:
        rates["click_and_conversion_rate"] = float(known["conversion"].to_numpy().mean())
    return {
        "from_tick": window.from_tick,
        "to_tick": window.to_tick,
        "excluded": [list(interval) for interval in window.excluded],
        "watermark_us": watermark_us,
        "event_at_us": event_at_us,
        "feature_service": spec.feature_service,
        "code": code_of(spec),
        "rows": samples.num_rows,
        "metrics": {"loss": float(loss), **rates},
    }


def _watermark_us(settings: Settings, spec: LineSpec, samples: pa.Table) -> int:
    """Arrival of the newest event behind the samples: the log is in arrival order."""
    newest = max(pc.max(samples[name]).as_py() for name in offset_columns(spec))
    log = FileLog(settings.line_home(spec.line) / "log" / "events", event_schema(spec))
    record = log.read(newest, newest + 1)
    return int(record["arrival_at"].cast(pa.int64())[0].as_py())


def _joined(settings: Settings, spec: LineSpec, samples: pa.Table) -> pa.Table:
    """The samples with model inputs as Feast's history gives them, in the same order."""
    from headrace.store import Store

    asked = samples.select(list(spec.columns)).append_column(
        "request_at", samples["served_at"].cast(pa.int64())
    )
    features = Store(settings).read_history(spec, asked)
    for field in input_fields(spec):
        at = samples.schema.get_field_index(field.name)
        samples = samples.set_column(at, field, features[field.name])
    return samples
