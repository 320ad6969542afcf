"""The guard of a line: watches the champion on the newest labelled rows, and rolls it back.

One resident process (`headrace guard`), beside the cycles, with nobody waiting for it. A pass looks
at the rows that the champion answered in the present window of its reign; on a breach it raises an
alarm, and where the previous version is better on the same rows it rolls the line back by the
champion's compare-and-swap, which puts what was learned since into quarantine.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import alarms, promote
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, DeclarationError, HeadraceError, InputError
from headrace.evaluate import first_seen
from headrace.events import PREVIOUS, PRIOR, TIME, as_due, served_schema
from headrace.labels.revisions import unsettled
from headrace.line import Champion, LineStore
from headrace.log.files import FileLog
from headrace.sample import SampleTail, head_tick, tick_as_of
from headrace.settings import Settings
from headrace.train import quarantined, require_same_code
from headrace.watch import Live, Watched, watch

if TYPE_CHECKING:
    from headrace.model import Model

LOG = logging.getLogger(__name__)
NEWEST_SERVED: Final = 10_000
"""So many of the newest served rows are read for the distribution of scores."""

STOOD_IN: Final = 100


@dataclass(frozen=True)
class Pass:
    """What a pass saw and did. `action`: none, alarm (told, nothing moved) or rollback.

    `since_us`: start of the window. `rolled_back_to`: version that serves again.
    """

    champion: str | None
    generation: int
    since_us: int
    watched: Watched | None
    action: str = "none"
    rolled_back_to: str | None = None
    why: str = ""


class Guard:
    """Watches one line. Keeps the previous version's model, and which breaches were told."""

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        self._settings = settings
        self._spec = spec
        self._home = settings.line_home(spec.line)
        self._store = LineStore(settings.line_store_url(spec.line), spec.line)
        self._samples = SampleTail(spec, self._home)
        self._previous: tuple[str, Model] | None = None
        self._told: set[tuple[int, int, str]] = set()

    def once(self, now_us: int | None = None) -> Pass:
        """One pass. Raises `IntegrityError` when versions or samples are damaged."""
        champion = self._store.champion()
        if champion is None:
            return Pass(None, 0, 0, None)
        now_us = time.time_ns() // 1_000 if now_us is None else now_us
        age = max(now_us - champion.at_us, 0)
        since_us = champion.at_us + age // self._spec.guard.window * self._spec.guard.window
        live = self._live(champion, since_us)
        evidence = self._store.evidence(champion.version)
        if evidence is not None and evidence.get("candidate") != champion.version:
            evidence = None
        watched = watch(self._spec.guard, self._spec.gates.model, evidence, live)
        if (missed := self._missed(champion, since_us)) is not None:
            watched = replace(watched, breaches=(*watched.breaches, missed))
        seen = Pass(champion.version, champion.generation, since_us, watched)
        return self._act(champion, seen, watched) if watched.breaches else seen

    def _act(self, champion: Champion, seen: Pass, watched: Watched) -> Pass:
        reason = "; ".join(watched.breaches)
        if self._spec.guard.rollback and watched.rollback_helps:
            try:
                now = promote.roll_back(
                    self._settings, self._spec, reason=f"guard: {reason}", expected=champion
                )
            except (ConflictError, InputError) as problem:
                return self._tell(seen, watched, "alarm", f"not rolled back: {problem}")
            return self._tell(seen, watched, "rollback", reason, now.version)
        why = (
            "guard.rollback is off"
            if watched.rollback_helps
            else "a rollback would not help: no earlier version does better on the same rows"
        )
        return self._tell(seen, watched, "alarm", f"{why}; {reason}")

    def _tell(
        self, seen: Pass, watched: Watched, action: str, why: str, to: str | None = None
    ) -> Pass:
        told = Pass(seen.champion, seen.generation, seen.since_us, watched, action, to, why)
        failed = ",".join(sorted(breach.split(":", 1)[0] for breach in watched.breaches))
        key = (seen.generation, seen.since_us, failed)
        if action == "rollback" or key not in self._told:
            self._told.add(key)
            alarms.raise_alarm(self._settings, self._spec.line, "guard", asdict(told))
        return told

    def _live(self, champion: Champion, since_us: int) -> Live:
        rows = _answered(self._labelled(since_us), champion.version, since_us)
        log = FileLog(self._home / "log" / "served", served_schema(self._spec))
        served = log.read(max(log.head - NEWEST_SERVED, 0), log.head)
        served = _answered(served, champion.version, since_us)
        return Live(
            requests=_codes(rows["request_id"]),
            labels=rows["label"].to_numpy(),
            scores=rows["score"].to_numpy(),
            scored=served["score"].to_numpy(),
            scored_requests=pc.count_distinct(served["request_id"]).as_py(),
            previous=self._predecessor(champion, rows),
        )

    def _missed(self, champion: Champion, since_us: int) -> str | None:
        """Why the champion does not answer although it should: others stand in for it.

        So it is where it cannot be loaded or its scores are not finite; what it says is then seen
        by nobody. A hundred of the newest rows tell it.
        """
        log = FileLog(self._home / "log" / "served", served_schema(self._spec))
        rows = log.read(max(log.head - NEWEST_SERVED, 0), log.head)
        since = pa.scalar(max(since_us, champion.at_us), pa.int64()).cast(TIME)
        rows = rows.filter(pc.greater_equal(rows["served_at"], since))
        rows = rows.slice(max(rows.num_rows - STOOD_IN, 0))
        words = pc.fill_null(rows["fallback"], "")
        stood_in = pc.or_(pc.match_substring(words, PREVIOUS), pc.match_substring(words, PRIOR))
        share = pc.mean(stood_in.cast(pa.float64())).as_py() if rows.num_rows == STOOD_IN else 0.0
        if share < 0.5:
            return None
        return (
            f"champion_answers: others stood in for {champion.version} in {share:.0%} of the "
            f"newest {STOOD_IN} rows; it cannot be loaded, or its scores are not finite"
        )

    def _labelled(self, since_us: int) -> pa.Table:
        head = head_tick(self._home)
        start = min(tick_as_of(self._home, since_us), head)
        exclude = quarantined(self._settings, self._spec, start, head)
        samples = self._samples.read(start, head, exclude)
        return first_seen(samples.filter(pa.array(~unsettled(self._spec, samples))))

    def _predecessor(self, champion: Champion, rows: pa.Table) -> NDArray[np.float64] | None:
        """What the version says of the rows that a rollback would bring back; None without one."""
        if rows.num_rows < self._spec.guard.min_requests:
            return None
        try:
            _, target = self._store.rollback_target()
            if target == champion.version:
                return None
            if self._previous is None or self._previous[0] != target:
                self._previous = (target, self._load(target))
        except (InputError, DeclarationError) as problem:  # none before it, pruned, redeclared
            LOG.debug("%s: nothing to compare with: %s", self._spec.line, problem)
            return None
        return self._previous[1].predict(rows)

    def _load(self, version: str) -> Model:
        from headrace.model import Model

        manifest, state = self._store.load(version)
        require_same_code(self._spec, manifest)
        model = Model(self._spec.model, self._spec.seed, conversion=self._spec.converts, blank=True)
        model.load_state(state)
        return model


def run(settings: Settings, spec: LineSpec, stop: threading.Event) -> None:
    """Passes every `guard.every` until `stop`; one that fails is told and tried again.

    `guard/guard.json` in the line's home holds the newest pass, `guard/guard.prom` its figures for
    the textfile collector of Prometheus' node exporter.
    """
    guard, told = Guard(settings, spec), ""
    while not stop.is_set():
        problem, seen = "", None
        try:
            seen = guard.once()
        except HeadraceError as fault:
            problem = str(fault)
            if problem != told:
                LOG.error("%s: guard: %s", spec.line, problem)
        told = problem
        write(settings, spec.line, seen, problem)
        stop.wait(spec.guard.every / 1e6)


def write(settings: Settings, line: str, seen: Pass | None, problem: str = "") -> None:
    """Write what the newest pass saw, as JSON and as metrics."""
    folder = beat(settings, line).parent
    body: dict[str, Any] = {"at": datetime.now(UTC).isoformat(), "problem": problem or None}
    write_json(beat(settings, line), body | (asdict(seen) if seen else {}))
    _write_metrics(folder / "guard.prom", line, alarms.alarms(settings, line), seen)


def beat(settings: Settings, line: str) -> Path:
    """Where a running guard says that it is alive."""
    return settings.line_home(line) / "guard" / "guard.json"


def _write_metrics(path: Path, line: str, told: list[dict[str, Any]], seen: Pass | None) -> None:
    from headrace.meters import write_figures

    figures: dict[str, float] = {
        "alarms": len(told),
        "rollbacks": sum(alarm.get("action") == "rollback" for alarm in told),
        "last_pass_timestamp_seconds": time.time(),
    }
    if seen is not None and seen.watched is not None:
        watched = seen.watched
        figures |= {
            "requests": watched.requests,
            "logloss": watched.logloss,
            "calibration": watched.calibration,
            "breaches": len(watched.breaches),
        }
        for name, figure in (("score_shift", watched.score_shift), ("gain", watched.gain)):
            if figure is not None:
                figures[name] = figure
    gauges = {name: (f"Guard: {name}", value) for name, value in figures.items()}
    write_figures(path, "headrace_guard", {"line": line}, gauges)


def _answered(rows: pa.Table, version: str, since_us: int) -> pa.Table:
    """Rows that a version served since a moment, in the order served, with what was due.

    Where defaults stood in for features, the version is not to blame for its scores.
    """
    rows = as_due(rows)
    mine = pc.and_(
        pc.equal(rows["version"], version),
        pc.greater_equal(rows["served_at"], pa.scalar(since_us, pa.int64()).cast(TIME)),
    )
    return rows.filter(mine).sort_by("served_at").combine_chunks()


def _codes(requests: pa.ChunkedArray) -> NDArray[np.int64]:
    """Codes that rise in the order of first appearance, (n,)."""
    encoded = requests.combine_chunks().dictionary_encode()
    codes: NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
    return codes
