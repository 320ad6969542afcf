"""One tick: an interval of the log becomes features, samples and fates, exactly once.

The plan (which offsets) is stored first and the manifest (the commit) last. A tick that was
cut short is run again from the same plan over the same state, so it writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import pyarrow as pa

from headrace.atomic import write_json, write_parquet
from headrace.declaration import LineSpec
from headrace.errors import IntegrityError
from headrace.events import TIME, event_schema, served_schema
from headrace.ingest import checkpoint
from headrace.labels.state import Emitted, LabelState
from headrace.log.files import FileLog
from headrace.log.stamp import last_arrival_us
from headrace.sample import TickManifest, head_tick, read_tick, ticks
from headrace.windows import WindowState

Push = Callable[[str, pa.Table], None]
CHECKPOINT_EVERY: Final = 20


@dataclass(frozen=True)
class Plan:
    """The offsets `[from, to)` that a tick reads, and its time."""

    tick: int
    at_us: int
    events: tuple[int, int]
    served: tuple[int, int]


class ReadableLog(Protocol):
    """A log as a tick reads it: a `FileLog`, or the writer that knows its own appends."""

    @property
    def head(self) -> int: ...

    def read(self, start: int, stop: int) -> pa.Table: ...


@dataclass(frozen=True)
class Logs:
    """The two logs of a line."""

    events: ReadableLog
    served: ReadableLog

    @classmethod
    def open(cls, spec: LineSpec, home: Path) -> Self:
        """Both logs for reading, from their files."""
        return cls(
            FileLog(home / "log" / "events", event_schema(spec)),
            FileLog(home / "log" / "served", served_schema(spec)),
        )


class TickState:
    """Windows and labels after the newest tick of a line, and where the next one starts."""

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

    def plan(self, events_to: int | None = None) -> Plan | None:
        """The stored plan of the next tick, or a new one up to the head; None without news."""
        path = self._plan_path
        if path.is_file():
            body = json.loads(path.read_text(encoding="utf-8"))
            events, served = body["events"], body["served"]
            plan = Plan(body["tick"], body["at_us"], (events[0], events[1]), (served[0], served[1]))
            if plan.events[0] != self.events_to or plan.served[0] != self.served_to:
                raise IntegrityError(
                    f"{path}: starts at {plan.events[0]}, {plan.served[0]}, but tick "
                    f"{self.next_tick - 1} ended at {self.events_to}, {self.served_to}; "
                    "restore the ticks folder"
                )
            return plan
        # Events before vectors: a vector is logged before its impression can be posted.
        events_to = self.logs.events.head if events_to is None else events_to
        if events_to <= self.events_to:
            return None
        last = self.logs.events.read(events_to - 1, events_to)
        return Plan(
            self.next_tick,
            last_arrival_us(last) + 1,
            (self.events_to, events_to),
            (self.served_to, self.logs.served.head),
        )

    def absorb(self, plan: Plan, windows: bool = True) -> tuple[Emitted, dict[str, pa.Table]]:
        """Read the plan's offsets; return samples and fates, and feature rows by view."""
        resolved = self.labels.resolve(self.read_events(*plan.events))
        changed = {}
        if windows:
            self.windows.append(resolved)
            changed = {view: self._changed(view, plan.at_us) for view in self.spec.views}
            self.windows.expire(plan.at_us)
        served = self.logs.served.read(*plan.served)
        if served.num_rows != plan.served[1] - plan.served[0]:
            raise IntegrityError(
                f"{self.home}: the served log ends before offset {plan.served[1]}; restore it"
            )
        return self.labels.emit(served, plan.at_us), changed

    def read_events(self, start: int, stop: int) -> pa.Table:
        """Events `[start, stop)` with their `offset`."""
        events = self.logs.events.read(start, stop)
        if events.num_rows != stop - start:
            raise IntegrityError(
                f"{self.home}: the event log ends before offset {stop}; restore it"
            )
        return events.append_column("offset", pa.array(np.arange(start, stop, dtype=np.int64)))

    def commit(self, manifest: TickManifest) -> None:
        """Write the manifest: from here on the tick exists."""
        write_json(self.home / "ticks" / f"{manifest.tick:08d}.json", manifest.to_json())
        self._move(manifest)

    def save(self, every: int = CHECKPOINT_EVERY) -> None:
        """Checkpoint the state when that is due after the newest tick."""
        if self.next_tick and self.next_tick % every == 0:
            newest = self.next_tick - 1
            if not checkpoint.exists(self.home, newest):
                checkpoint.write(self.home, newest, self.windows, self.labels)
            checkpoint.prune(self.home)

    def store_plan(self, plan: Plan) -> None:
        """Make the plan durable, so that a rerun reads the same offsets."""
        if not self._plan_path.is_file():
            body = {"tick": plan.tick, "at_us": plan.at_us}
            write_json(
                self._plan_path, {**body, "events": list(plan.events), "served": list(plan.served)}
            )

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


def run_tick(
    state: TickState,
    plan: Plan,
    push: Push | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> TickManifest:
    """Run one tick to its commit, then push its feature rows; `state` moves on.

    After an error the state is half moved: restore it.
    """
    state.store_plan(plan)
    emitted, features = state.absorb(plan)
    name = f"b={plan.tick:08d}.parquet"
    paths = {view: f"features/{view}/{name}" for view, rows in features.items() if rows.num_rows}
    for view, path in paths.items():
        write_parquet(state.home / path, features[view])
    written: dict[str, str | None] = {}
    for kind, table in (("samples", emitted.samples), ("fates", emitted.fates)):
        written[kind] = f"{kind}/{name}" if table.num_rows else None
        if table.num_rows:
            write_parquet(state.home / kind / name, table)
    manifest = TickManifest(
        plan.tick,
        plan.at_us,
        plan.events,
        plan.served,
        written["samples"],
        written["fates"],
        paths,
        _counts(plan, emitted, features),
    )
    state.commit(manifest)
    state.save(checkpoint_every)
    if push is not None:
        for view in paths:
            push(view, features[view])
    return manifest


def _counts(plan: Plan, emitted: Emitted, features: dict[str, pa.Table]) -> dict[str, int]:
    counts = {
        "events": plan.events[1] - plan.events[0],
        "served": plan.served[1] - plan.served[0],
        "samples": emitted.samples.num_rows,
        "corrections": int((emitted.samples["revision"].to_numpy() == 1).sum()),
        "positives": int(emitted.samples["label"].to_numpy().sum()),
        "features": sum(rows.num_rows for rows in features.values()),
    }
    fates, numbers = np.unique(emitted.fates["fate"].to_numpy().astype(str), return_counts=True)
    return {**counts, **dict(zip(fates.tolist(), numbers.tolist(), strict=True))}
