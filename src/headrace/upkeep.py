"""What a line needs beside the cycles: bases behind long chains, packs, old files removed, MLflow.

A process of its own (`headrace line upkeep`), so that none of it lies on the path of a promotion.
It may be killed, run twice or not at all: a chain that nobody compacts is ended by a base at
`line.store.LONGEST_CHAIN` deltas, and files stay.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from headrace import packing, tracking
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import HeadraceError
from headrace.line import LineStore, compaction, retention
from headrace.sample import head_tick
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
NOTHING: Final = packing.Packed()


@dataclass(frozen=True)
class Done:
    """What a pass did: the version that got a base, and those whose files were given up.

    `packed`: packs of old parts written, and parts removed because one holds them. `unmirrored`:
    why MLflow could not be brought up to date, None when it was or is not used.
    """

    compacted: str | None
    marked: list[str]
    restored: list[str]
    removed: list[str]
    packed: packing.Packed = NOTHING
    unmirrored: str | None = None


@dataclass
class Known:
    """What earlier passes of this process found done, so that a pass costs what is new."""

    retention: retention.Known = field(default_factory=retention.Known)
    mirrored: set[str] = field(default_factory=set)
    packing: packing.Known = field(default_factory=dict)


def once(settings: Settings, spec: LineSpec, known: Known | None = None) -> Done:
    """One pass. Raises `IntegrityError` when the champion's chain is damaged."""
    known = Known() if known is None else known
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    champion = store.champion()
    compacted = None
    if champion is not None:
        version = store.get(champion.version)
        if compaction.due(store, version, spec.delivery) and compaction.compact(store, version):
            compacted = version.version
    pruned = retention.prune(store, spec.delivery, known=known.retention)
    problem = None
    if settings.mlflow_uri is not None:
        problem = tracking.mirror(store, spec, settings.mlflow_uri, known.mirrored).problem
    home = settings.line_home(spec.line)
    packed = packing.pack(home, head_tick(home), known.packing)
    return Done(compacted, **asdict(pruned), packed=packed, unmirrored=problem)


def run(
    settings: Settings, spec: LineSpec, stop: threading.Event, interval_s: float = 10.0
) -> None:
    """Passes until `stop`; one that fails is told and tried again after `interval_s`.

    `upkeep.json` in the line's home says when the last pass ended and what came of it.
    """
    told, known = "", Known()
    while not stop.is_set():
        problem, done = "", None
        try:
            done = once(settings, spec, known)
            if done != Done(None, [], [], []):
                LOG.info("%s: %s", spec.line, asdict(done))
        except HeadraceError as fault:
            problem = str(fault)
            if problem != told:
                LOG.error("%s: upkeep: %s", spec.line, problem)
        told = problem
        body = {"at": datetime.now(UTC).isoformat(), "problem": problem or None}
        write_json(beat(settings, spec.line), body | (asdict(done) if done else {}))
        stop.wait(interval_s)


def beat(settings: Settings, line: str) -> Path:
    """Where a running upkeep says that it is alive."""
    return settings.line_home(line) / "upkeep.json"
