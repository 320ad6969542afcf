"""One tick: an interval of the log becomes features, samples and fates, exactly once.

The plan (which offsets) is stored first and the manifest (the commit) last. A tick that was
cut short is run again from the same plan over the same state, so it writes the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.atomic import write_json, write_parquet
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import TIME
from headrace.ingest import checkpoint
from headrace.ingest.plan import TICK_EVENTS, Logs, Plan, last_append, last_vector
from headrace.labels.state import Emitted, LabelState
from headrace.log.stamp import last_arrival_us
from headrace.sample import TickManifest, head_tick, read_tick, ticks
from headrace.windows import WindowState

Push = Callable[[str, pa.Table], None]  # a view and the rows of its changed keys
CHECKPOINT_EVERY: Final = 20


class TickState:
    """Windows and labels after the newest tick of a line, and where the next one starts.

    `spent_s` holds the seconds of the newest tick by stage: read, windows, labels, write, push,
    and checkpoint if one was due.
    """

    def __init__(self, spec: LineSpec, home: Path, logs: Logs | None = None) -> None:
        self.spec = spec
        self.home = home
        self.logs = logs or Logs.open(spec, home)
        self.windows = WindowState(spec)
        self.labels = LabelState(spec)
        self.next_tick = 0
        self.at_us = 0
        self.events_to = 0
        self.served_to = 0
        self.spent_s: dict[str, float] = {}

    @classmethod
    def restore(
        cls,
        spec: LineSpec,
        home: Path,
        until: int | None = None,
        *,
        windows: bool = True,
        logs: Logs | None = None,
    ) -> TickState:
        """The state after tick `until - 1` (default: the newest), from a checkpoint and the log.

        With `windows=False` only the labels are built.
        """
        state = cls(spec, home, logs)
        head = head_tick(home) if until is None else until
        found = checkpoint.newest(spec, home, head, state.logs.served.read)
        if found is not None:
            after, state.windows, state.labels = found
            state._move(read_tick(home, after))
        for manifest in ticks(home, state.next_tick, head):
            state.absorb(
                Plan(manifest.tick, manifest.at_us, manifest.events, manifest.served), windows
            )
            state._move(manifest)
        return state

    def plan(self, events_to: int | None = None, most: int = TICK_EVENTS) -> Plan | None:
        """The stored plan of the next tick, or a new one; None without news.

        A new one goes up to `events_to`, by default up to the head or to the last append that ends
        within `most` events.
        """
        path = self._plan_path
        if path.is_file():
            plan = _stored_plan(path)
            if plan.events[0] != self.events_to or plan.served[0] != self.served_to:
                raise IntegrityError(
                    f"{path}: starts at {plan.events[0]}, {plan.served[0]}, but tick "
                    f"{self.next_tick - 1} ended at {self.events_to}, {self.served_to}; "
                    "restore the ticks folder"
                )
            return plan
        # Events before vectors: a vector is logged before its impression can be posted.
        events, served = self.logs.events, self.logs.served
        if events_to is None:
            events_to = last_append(events, self.events_to, most)
        if events_to <= self.events_to:
            return None
        at_us = last_arrival_us(events.read(events_to - 1, events_to)) + 1
        served_to = last_vector(served, self.served_to, at_us, most)
        return Plan(self.next_tick, at_us, (self.events_to, events_to), (self.served_to, served_to))

    def absorb(self, plan: Plan, windows: bool = True) -> tuple[Emitted, dict[str, pa.Table]]:
        """Read the plan's offsets; return samples and fates, and feature rows by view."""
        with self.timed("read"):
            events, served = self.read_events(*plan.events), self._read_served(*plan.served)
        with self.timed("labels"):
            resolved = self.labels.resolve(events)
        changed = {}
        if windows:
            with self.timed("windows"):
                self.windows.append(resolved)
                changed = {view: self._changed(view, plan.at_us) for view in self.spec.views}
                self.windows.expire(plan.at_us)
        with self.timed("labels"):
            return self.labels.emit(served, plan.at_us), changed

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to a stage of `spent_s`."""
        began = time.perf_counter()
        yield
        self.spent_s[stage] = self.spent_s.get(stage, 0.0) + time.perf_counter() - began

    def read_events(self, start: int, stop: int) -> pa.Table:
        """Events `[start, stop)` with their `offset`."""
        events = self.logs.events.read(start, stop)
        if events.num_rows != stop - start:
            raise IntegrityError(
                f"{self.home}: the event log ends before offset {stop}; restore it"
            )
        return events.append_column("offset", pa.array(np.arange(start, stop, dtype=np.int64)))

    def _read_served(self, start: int, stop: int) -> pa.Table:
        served = self.logs.served.read(start, stop)
        if served.num_rows != stop - start:
            raise IntegrityError(
                f"{self.home}: the served log ends before offset {stop}; restore it"
            )
        return served

    def commit(self, manifest: TickManifest) -> None:
        """Write the manifest: from here on the tick exists."""
        write_json(self.home / "ticks" / f"{manifest.tick:08d}.json", manifest.to_json())
        self._move(manifest)

    def save(self, every: int = CHECKPOINT_EVERY) -> None:
        """Checkpoint the state when that is due after the newest tick."""
        if self.next_tick and self.next_tick % every == 0:
            newest = self.next_tick - 1
            with self.timed("checkpoint"):
                if not checkpoint.exists(self.home, newest):
                    checkpoint.write(self.home, newest, self.windows, self.labels)
                checkpoint.prune(self.home)

    def store_plan(self, plan: Plan) -> None:
        """Make the plan durable, so that a rerun reads the same offsets."""
        if not self._plan_path.is_file():
            write_json(self._plan_path, plan.to_json())

    @property
    def _plan_path(self) -> Path:
        return self.home / "ticks" / f"{self.next_tick:08d}.plan.json"

    def _move(self, manifest: TickManifest) -> None:
        self.next_tick = manifest.tick + 1
        self.at_us = manifest.at_us
        self.events_to = manifest.events[1]
        self.served_to = manifest.served[1]

    def _changed(self, view: str, at_us: int) -> pa.Table:
        keys = self.windows.changed(view, self.at_us, at_us)
        values = self.windows.values(keys, np.full(keys.num_rows, at_us, dtype=np.int64), view=view)
        at = pa.array(np.full(keys.num_rows, at_us, dtype=np.int64))
        rows = keys.append_column("event_timestamp", at.cast(TIME)).append_column(f"{view}__at", at)
        for name in values.column_names:
            rows = rows.append_column(pa.field(name, pa.int64()), values[name])
        return rows


def _stored_plan(path: Path) -> Plan:
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, IndexError, TypeError) as problem:
        raise IntegrityError(
            f"{path}: not readable ({problem!r}); remove it: its tick was not committed"
        ) from problem


def run_tick(
    state: TickState,
    plan: Plan,
    push: Push | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> TickManifest:
    """Run one tick to its commit, then push its feature rows; `state` moves on.

    After an error the state is half moved: restore it.
    """
    state.spent_s.clear()
    state.store_plan(plan)
    emitted, features = state.absorb(plan)
    with state.timed("write"):
        manifest = _write(state, plan, emitted, features)
        state.commit(manifest)
    state.save(checkpoint_every)
    if push is not None:
        with state.timed("push"):
            for view in manifest.features:
                push(view, features[view])
    return manifest


def _write(
    state: TickState, plan: Plan, emitted: Emitted, features: dict[str, pa.Table]
) -> TickManifest:
    """Write the tick's parts; return the manifest that will commit them."""
    name = f"b={plan.tick:08d}.parquet"
    paths = {view: f"features/{view}/{name}" for view, rows in features.items() if rows.num_rows}
    for view, path in paths.items():
        write_parquet(state.home / path, features[view])
    written: dict[str, str | None] = {}
    for kind, table in (("samples", emitted.samples), ("fates", emitted.fates)):
        written[kind] = f"{kind}/{name}" if table.num_rows else None
        if table.num_rows:
            write_parquet(state.home / kind / name, table)
    return TickManifest(
        plan.tick,
        plan.at_us,
        plan.events,
        plan.served,
        written["samples"],
        written["fates"],
        paths,
        _counts(plan, emitted, features),
    )


def advance(
    state: TickState, push: Push | None, events_to: int | None = None, most: int = TICK_EVENTS
) -> TickManifest | None:
    """Run the next tick if there is anything to read (or a tick was cut short)."""
    plan = state.plan(events_to, most)
    return None if plan is None else run_tick(state, plan, push)


def resume(spec: LineSpec, home: Path, logs: Logs | None = None) -> TickState:
    """The state to go on from; a checkpoint that a kill prevented is made up for."""
    state = TickState.restore(spec, home, logs=logs)
    state.save()
    checkpoint.prune(home)
    return state


def _counts(plan: Plan, emitted: Emitted, features: dict[str, pa.Table]) -> dict[str, int]:
    counts = {
        "events": plan.events[1] - plan.events[0],
        "served": plan.served[1] - plan.served[0],
        "samples": emitted.samples.num_rows,
        "corrections": int((emitted.samples["revision"].to_numpy() > 0).sum()),
        "positives": int(emitted.samples["positive_weight"].to_numpy().sum()),
        "features": sum(rows.num_rows for rows in features.values()),
    }
    if "conversion_offset" in emitted.samples.column_names:
        counts["conversions"] = int((emitted.samples["conversion_offset"].to_numpy() >= 0).sum())
    fates, numbers = np.unique(emitted.fates["fate"].to_numpy().astype(str), return_counts=True)
    return {**counts, **dict(zip(fates.tolist(), numbers.tolist(), strict=True))}
