"""What the line's store says of its recent past, for people: read beside the requests.

Nothing here is on the path of a scoring request. A look costs a listing and the files that are
new; it is taken in a thread of its own, only when somebody asks, and its pace follows its cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final

from headrace.errors import InputError
from headrace.line import Champion, LineStore
from headrace.line.races import Races
from headrace.quarantine import Quarantine

VERSIONS: Final = 12
MOVES: Final = 60
WINDOWS: Final = 5
_SHOWN: Final = (
    *("rows", "candidate_logloss", "champion_logloss", "logloss_diff_low", "logloss_diff_high"),
    *("calibration", "auc", "parity_rows", "parity_mismatches", "made_at_us"),
)
"""Of the evidence."""


class Chronicle:
    """Reads versions with their verdicts, moves of the champion, refused windows, the race."""

    def __init__(self, store: LineStore, home: Path) -> None:
        self._store = store
        self._races = Races(store)
        self._quarantine = Quarantine(home)
        self._moves: list[Champion] = []
        self._judged: dict[str, dict[str, Any]] = {}
        self._watermarks: dict[str, int | None] = {}

    def look(self) -> dict[str, Any]:
        """All of it, JSON-ready, newest first. Raises what the store raises."""
        newest = self._moves[0].generation if self._moves else 0
        moved = takewhile(lambda move: move.generation > newest, self._store.champions())
        self._moves = [*islice(moved, MOVES), *self._moves][:MOVES]
        names = self._store.latest(VERSIONS)
        windows = sorted(self._quarantine.intervals(), key=lambda w: str(w["at"]), reverse=True)
        found = {
            "versions": [self._version(name, name in names[:3]) for name in names],
            "moves": [self._move(champion) for champion in self._moves],
            "quarantine": {"windows": len(windows), "newest": windows[:WINDOWS]},
            "race": self._race(),
        }
        self._forget({*names, *(champion.version for champion in self._moves)})
        return found

    def _version(self, name: str, young: bool) -> dict[str, Any]:
        """A version, its evidence and its verdict, which a young one may still get."""
        known = self._judged.get(name)
        if known is not None and known["passed"] is not None and not young:
            return known
        about = self._store.get(name)
        evidence = self._store.evidence(name) or {}
        verdict = self._store.verdict(name) or {}
        found = {
            "version": name,
            "parent": about.parent,
            "kind": about.kind,
            "publisher": about.publisher,
            "created_at": about.created_at,
            "ticks": [about.from_tick, about.to_tick],
            "rows": about.rows,
            "passed": verdict.get("passed"),
            "reasons": list(verdict.get("reasons", ())),
            "evidence": {key: evidence.get(key) for key in _SHOWN} if evidence else None,
        }
        self._judged[name] = found
        return found

    def _move(self, champion: Champion) -> dict[str, Any]:
        if champion.version not in self._watermarks:
            try:
                watermark_us = self._store.get(champion.version).watermark_us
            except InputError:  # retention has removed the version
                watermark_us = None
            self._watermarks[champion.version] = watermark_us
        return {
            "version": champion.version,
            "at_us": champion.at_us,
            "action": champion.action,
            "reason": champion.reason,
            "watermark_us": self._watermarks[champion.version],
        }

    def _race(self) -> dict[str, Any] | None:
        """The newest state of a race, and what the newest look at it saw."""
        raced = self._races.newest()
        if raced is None:
            return None
        return {
            "running": raced.race is not None,
            "at_us": raced.at_us,
            "action": raced.action,
            "reason": raced.reason,
            "look": None if raced.race is None else self._races.seen(raced.race.name),
        }

    def _forget(self, but: set[str]) -> None:
        self._judged = {name: held for name, held in self._judged.items() if name in but}
        self._watermarks = {name: at for name, at in self._watermarks.items() if name in but}


@dataclass(frozen=True)
class Seen:
    """The newest look: what was found, when, and why one after it failed."""

    found: dict[str, Any] | None = None
    read_at_us: int | None = None
    problem: str | None = None
    due: float = 0.0
    """Of `time.monotonic`: not to be asked again before."""


class Lookout:
    """Asks a slow question in one thread, at most every `ttl_s` and a tenth of the time."""

    def __init__(self, ask: Callable[[], dict[str, Any]], ttl_s: float = 1.0) -> None:
        self._ask = ask
        self._ttl_s = ttl_s
        self._seen = Seen()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chronicle")
        self._asking: Future[None] | None = None

    async def seen(self, patience_s: float = 0.5) -> Seen:
        """The newest look; a new one where it is due, waited for no longer than the patience.

        To be called from one event loop.
        """
        if self._asking is None or self._asking.done():
            if time.monotonic() < self._seen.due:
                return self._seen
            self._asking = self._thread.submit(self._look)
        await asyncio.wait([asyncio.wrap_future(self._asking)], timeout=patience_s)
        return self._seen

    def stop(self) -> None:
        """End the thread; a look in progress is finished first."""
        self._thread.shutdown()

    def _look(self) -> None:
        began = time.monotonic()
        try:
            seen = Seen(self._ask(), time.time_ns() // 1_000)
        except Exception as fault:  # noqa: BLE001 - told on the page, and asked again
            seen = replace(self._seen, problem=str(fault))
        now = time.monotonic()
        self._seen = replace(seen, due=now + max(self._ttl_s, 9 * (now - began)))
