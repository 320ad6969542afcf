"""Train a candidate version: incrementally from the champion, or in full from scratch.

Ticks are half-open `[from_tick, to_tick)`. Both read the same samples that the data gate
checked (`window_samples`) and publish a version; nothing here moves the champion.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import passes
from headrace.cases import CaseBook, among, as_learned
from headrace.declaration import DelayedFeedback, LabelSpec, LineSpec, ModelSpec
from headrace.errors import ConflictError, DeclarationError, InputError
from headrace.events import event_schema
from headrace.labels.revisions import thin_negatives, unlearned
from headrace.line import About, LineStore, Version
from headrace.log.files import FileLog
from headrace.mixing import mixed
from headrace.passes import Point
from headrace.past import CHUNK_ROWS, Advance, Rows, Seen, prepare, quiet, workspace
from headrace.sample import Quarantine, count_samples, head_tick, read_samples, tick_of
from headrace.settings import Cluster, Settings
from headrace.workers import Job, require_number, work
from headrace.workers import learn as learn_together

if TYPE_CHECKING:
    from headrace.model import Model, State

Ticks = tuple[int, int]

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


@dataclass(frozen=True)
class Learned:
    """What a version learned: its ticks, their samples, the mean loss, and how many older rows."""

    from_tick: int
    to_tick: int
    excluded: list[Ticks]
    seen: Seen
    loss: float = 0.0
    replayed: int = 0

    @classmethod
    def of(cls, spec: LineSpec, window: Window) -> Learned:
        """A window that is still to be learned."""
        seen = Seen()
        seen.add(spec, window.samples)
        return cls(window.from_tick, window.to_tick, window.excluded, seen)

    def after(self, lesson: Lesson, loss: float) -> Learned:
        """The same once that lesson was learned, at that mean loss."""
        seen = replace(self.seen, cases=lesson.cases)
        return replace(self, seen=seen, loss=loss, replayed=lesson.replayed)


@dataclass(frozen=True)
class Lesson:
    """Rows as a model learns them: a window's, `replayed` older ones, and `cases` that people
    corrected, which weigh `case_weight` together.
    """

    rows: pa.Table
    replayed: int
    cases: int
    case_weight: float


def code_of(spec: LineSpec) -> str:
    """Package version and digest of what a state's meaning depends on: columns, label, windows,
    request features and model. Gates, cadence, source and what is replayed may change under a
    champion.
    """
    unsaid = {  # versions from before these keys stay valid
        part: {name for name in names if getattr(declared, name) == _default(declared, name)}
        for part, declared, names in (
            ("label", spec.label, ("delayed_feedback", "negative_rate", "conversion")),
            ("model", spec.model, _NEWER_MODEL_KEYS),
        )
    }
    unsaid["model"].add("replay_share")
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
    learned = Learned.of(spec, window)
    _require_samples(spec, learned)
    model = _model(spec, spec.label.delayed_feedback)
    model.load_state(state)
    lesson = lesson_of(settings, spec, window)
    learned = learned.after(lesson, model.learn(lesson.rows).loss)
    return _publish(settings, spec, model.state(), learned, (before, state))


def lesson_of(settings: Settings, spec: LineSpec, window: Window) -> Lesson:
    """The window's rows as a model learns them on top of those before it."""
    rows = thin_negatives(spec, window.samples)
    home = settings.line_home(spec.line)
    mixture = mixed(spec, home, window.from_tick, window.to_tick, rows)
    refused = quarantined(settings, spec, 0, window.to_tick)
    cases = CaseBook(spec, home).corrections(window.from_tick, window.to_tick, refused)
    return Lesson(
        rows=among(mixture, as_learned(spec, cases)) if cases.num_rows else mixture,
        replayed=mixture.num_rows - rows.num_rows,
        cases=cases.num_rows,
        case_weight=float(cases["case_weight"].to_numpy().sum()),
    )


def full(
    settings: Settings,
    spec: LineSpec,
    to_tick: int | None = None,
    *,
    workers: int = 1,
    chunk_rows: int = CHUNK_ROWS,
    advance: Advance = quiet,
) -> str:
    """Train from scratch over `[0, to_tick)` (default: `holdout_from`); returns the version.

    Rows are the newest revision of each impression, so that no weighting of late ones is needed;
    of the negatives `label.negative_rate` are kept. Their features are those of Feast's
    point-in-time join at the time they were served, `chunk_rows` rows at a time: the version's
    bytes do not depend on it, memory does. `workers` processes share each batch.
    """
    require_number(workers)
    end = holdout_from(settings, spec) if to_tick is None else to_tick
    with workspace(settings, spec) as folder:
        rows, learned = _prepared(settings, spec, end, folder, chunk_rows, advance)

        def after(point: Point, blocks: int) -> None:
            total = blocks * spec.model.epochs
            advance(point.epoch * blocks + point.block, total, f"epoch {point.epoch + 1}")

        if workers == 1:
            model = _model(spec)
            ended = passes.learn(
                model, rows, spec.model.epochs, after=lambda point: after(point, rows.blocks)
            )
            state = model.state()
        else:
            job = Job(
                spec.model, spec.seed, spec.converts, folder, folder / "checkpoint.safetensors"
            )
            ended, state = learn_together(job, workers, after)
    return _publish(settings, spec, state, replace(learned, loss=ended.mean_loss), None)


def full_as_worker(
    settings: Settings, spec: LineSpec, to_tick: int, cluster: Cluster, advance: Advance = quiet
) -> str | None:
    """The same as one process of a group that somebody else starts, and starts again.

    All of them see the same home. The first publishes and returns the version, the others return
    None. A process that is started again goes on from the group's last checkpoint. Raises
    `PeerLost` when another one is gone.
    """
    name = f"checkpoint-{to_tick}-{code_of(spec).rpartition('+')[2]}.safetensors"
    with workspace(settings, spec) as folder:
        _, learned = _prepared(settings, spec, to_tick, folder, CHUNK_ROWS, advance)
        job = Job(spec.model, spec.seed, spec.converts, folder, folder.parent / name)
        work(job, cluster.addresses, cluster.index, facts=(to_tick, learned.seen.rows))
    if cluster.index:
        return None
    found = passes.load(job.checkpoint)
    assert found is not None
    ended, state = found
    version = _publish(settings, spec, state, replace(learned, loss=ended.mean_loss), None)
    job.checkpoint.unlink()
    return version


def _prepared(  # noqa: PLR0917
    settings: Settings, spec: LineSpec, end: int, folder: Path, chunk_rows: int, advance: Advance
) -> tuple[Rows, Learned]:
    """The rows of a full training, below `folder`, and what a version says of them."""
    excluded = quarantined(settings, spec, 0, end)
    rows, seen = prepare(
        settings, spec, end, excluded, folder / "rows", chunk_rows=chunk_rows, advance=advance
    )
    learned = Learned(0, end, excluded, seen)
    _require_samples(spec, learned)
    return rows, learned


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
        return start if count_samples(home, start, head) >= need else head
    start = head - int(np.ceil(head * HOLDOUT_SHARE))
    while start > 0 and count_samples(home, start, head) < need:
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


def _require_samples(spec: LineSpec, learned: Learned) -> None:
    if not learned.seen.rows:
        raise InputError(
            f"line {spec.line!r}: ticks {learned.from_tick} to {learned.to_tick} hold no samples "
            "to learn; wait for events or release them from quarantine"
        )


def _publish(
    settings: Settings,
    spec: LineSpec,
    state: State,
    learned: Learned,
    parent: tuple[Version, State] | None,
) -> str:
    version = LineStore(settings.line_store_url(spec.line), spec.line).publish(
        state,
        parent=None if parent is None else parent[0].version,
        parent_state=None if parent is None else parent[1],
        **about(settings, spec, learned, None if parent is None else parent[0]),
    )
    return version.version


def about(settings: Settings, spec: LineSpec, learned: Learned, parent: Version | None) -> About:
    """What a version says of itself that learned this on top of `parent`."""
    seen = learned.seen
    watermark_us, event_at_us = _watermark_us(settings, spec, seen), seen.event_at_us
    if parent is not None:
        watermark_us = max(watermark_us, parent.watermark_us)
        event_at_us = max(event_at_us, parent.event_at_us)
    metrics = {"loss": float(learned.loss), "label_rate": seen.positives / seen.impressions}
    if spec.converts:
        metrics["click_and_conversion_rate"] = seen.conversions / seen.impressions
    if learned.replayed:
        metrics["replayed"] = float(learned.replayed)
    if seen.cases:
        metrics["cases"] = float(seen.cases)
    return {
        "from_tick": learned.from_tick,
        "to_tick": learned.to_tick,
        "excluded": [list(interval) for interval in learned.excluded],
        "watermark_us": watermark_us,
        "event_at_us": event_at_us,
        "feature_service": spec.feature_service,
        "code": code_of(spec),
        "rows": seen.rows,
        "metrics": metrics,
    }


def _watermark_us(settings: Settings, spec: LineSpec, seen: Seen) -> int:
    """Arrival of the newest event behind the samples: the log is in arrival order."""
    log = FileLog(settings.line_home(spec.line) / "log" / "events", event_schema(spec))
    record = log.read(seen.newest_offset, seen.newest_offset + 1)
    return int(record["arrival_at"].cast(pa.int64())[0].as_py())
