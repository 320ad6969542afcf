"""What became of every event, computed offset by offset: nothing is assumed not to be lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace import parts
from headrace.declaration import LineSpec
from headrace.events import event_schema, offset_columns
from headrace.ingest.tick import TickState
from headrace.labels.state import fates_of
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.quarantine import Quarantine
from headrace.sample import TickManifest, ticks
from headrace.settings import Settings


def account(settings: Settings, spec: LineSpec) -> dict[str, int]:
    """Count events by where they are now; safe beside a running ingest process.

    `learned`: in a sample that the champion or one of its ancestors learned; `quarantined`:
    in a sample of a refused window; `pending`: in a sample that waits to be learned, in the
    label state, or not yet read by a tick; and one count for each fate of labels. These, with
    `lost` (found nowhere) less `duplicated` (found again), add up to `appended`. `malformed`
    events never entered the log and are counted beside it.
    """
    home = settings.line_home(spec.line)
    manifests = ticks(home)
    appended = FileLog(home / "log" / "events", event_schema(spec)).head
    learned = _learned_ticks(settings, spec, len(manifests))
    refused = _flags(
        [(body["from"], body["to"]) for body in Quarantine(home).intervals()], len(manifests)
    )
    places: dict[str, list[NDArray[np.int64]]] = {
        name: [] for name in ("learned", "pending", "quarantined", *fates_of(spec))
    }
    for manifest in manifests:
        place = "pending"
        if learned[manifest.tick]:
            place = "learned"
        elif refused[manifest.tick]:
            place = "quarantined"
        places[place].append(_sampled(spec, home, manifest))
        for fate, offsets in _fates(home, manifest).items():
            places[fate].append(offsets)
    state = TickState.restore(spec, home, len(manifests), windows=False)
    places["pending"].append(state.labels.pending_offsets())
    places["pending"].append(np.arange(state.events_to, appended, dtype=np.int64))
    return _counted(places, appended) | {"malformed": _lines(home / "malformed.jsonl")}


def _counted(places: dict[str, list[NDArray[np.int64]]], appended: int) -> dict[str, int]:
    found = {
        name: np.concatenate([np.empty(0, dtype=np.int64), *parts])
        for name, parts in places.items()
    }
    times = np.bincount(np.concatenate(list(found.values())), minlength=appended)
    return {
        "appended": appended,
        **{name: int(offsets.size) for name, offsets in found.items()},
        "lost": int((times[:appended] == 0).sum()),
        "duplicated": int(np.maximum(times - 1, 0).sum()),
    }


def _learned_ticks(settings: Settings, spec: LineSpec, count: int) -> NDArray[np.bool_]:
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    champion = store.champion()
    learned = np.zeros(count, dtype=np.bool_)
    version = champion.version if champion else None
    while version is not None:
        described = store.get(version)
        own = _flags([(described.from_tick, described.to_tick)], count)
        learned |= own & ~_flags([(start, stop) for start, stop in described.excluded], count)
        version = described.parent
    return learned


def _flags(intervals: list[tuple[int, int]], count: int) -> NDArray[np.bool_]:
    flags = np.zeros(count, dtype=np.bool_)
    for start, stop in intervals:
        flags[start:stop] = True
    return flags


def _sampled(spec: LineSpec, home: Path, manifest: TickManifest) -> NDArray[np.int64]:
    """Offsets that a tick's samples account for; a correction repeats its impression's."""
    if manifest.samples is None:
        return np.empty(0, dtype=np.int64)
    names = offset_columns(spec)
    columns = ["revision", *names]
    rows = parts.read(home / manifest.samples, columns)
    offsets = [rows[name].to_numpy() for name in names]
    offsets[0] = offsets[0][rows["revision"].to_numpy() == 0]
    found = np.concatenate(offsets).astype(np.int64)
    return found[found >= 0]


def _fates(home: Path, manifest: TickManifest) -> dict[str, NDArray[np.int64]]:
    if manifest.fates is None:
        return {}
    rows = parts.read(home / manifest.fates)
    offsets, names = rows["offset"].to_numpy(), rows["fate"].to_numpy().astype(str)
    return {str(name): offsets[names == name].astype(np.int64) for name in np.unique(names)}


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
