"""What a line's store needs beside the cycles: bases behind long chains, and old files removed.

A process of its own (`headrace line upkeep`), so that none of it lies on the path of a promotion.
It may be killed, run twice or not at all: a chain that nobody compacts is ended by a base at
`line.store.LONGEST_CHAIN` deltas, and files stay.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass

from headrace.declaration import LineSpec
from headrace.errors import HeadraceError
from headrace.line import LineStore, compaction, retention
from headrace.settings import Settings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """What a pass did: the version that got a base, and those whose files were given up."""

    compacted: str | None
    marked: list[str]
    restored: list[str]
    removed: list[str]


def once(settings: Settings, spec: LineSpec) -> Done:
    """One pass. Raises `IntegrityError` when the champion's chain is damaged."""
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    champion = store.champion()
    compacted = None
    if champion is not None:
        version = store.get(champion.version)
        if compaction.due(store, version, spec.delivery) and compaction.compact(store, version):
            compacted = version.version
    pruned = retention.prune(store, spec.delivery)
    return Done(compacted, **asdict(pruned))


def run(
    settings: Settings, spec: LineSpec, stop: threading.Event, interval_s: float = 10.0
) -> None:
    """Passes until `stop`; one that fails is told and tried again after `interval_s`."""
    told = ""
    while not stop.is_set():
        try:
            done = once(settings, spec)
            told = ""
            if done != Done(None, [], [], []):
                LOG.info("%s: %s", spec.line, asdict(done))
        except HeadraceError as problem:
            if str(problem) != told:
                LOG.error("%s: upkeep: %s", spec.line, problem)
            told = str(problem)
        stop.wait(interval_s)
