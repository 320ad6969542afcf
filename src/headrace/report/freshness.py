"""How long an event takes until a model that learned it answers: read from artifacts only.

An event ends in a sample of some tick; a version learned it when its lineage covers that
tick; the event's staleness is the time from its append to the first response of any such
version. Four stages add up to it: append → sample → cycle → promotion → response.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.cycle import Cycle
from headrace.line import Champion, Version

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEVER: Final = np.iinfo(np.int64).max
STAGES: Final = (
    "appended_to_sample",
    "sample_to_cycle_start",
    "cycle_start_to_promoted",
    "promoted_to_first_response",
)


def micros(column: pa.ChunkedArray | pa.Array) -> Ints:
    """A timestamp column as int64 µs since the epoch; null becomes 0."""
    values: Ints = pc.fill_null(column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), 0)
    return np.asarray(values, dtype=np.int64)


@dataclass(frozen=True)
class Learned:
    """For each tick the first version to answer with it, and when (µs, NEVER if none did)."""

    version: list[str | None]
    response_us: Ints


def covered(versions: Mapping[str, Version], name: str, ticks: int) -> NDArray[np.bool_]:
    """Which of the ticks `[0, ticks)` a version has learned, its ancestors included."""
    learned = np.zeros(ticks, dtype=bool)
    for version in _lineage(versions, name):
        learned |= _own(version, ticks)
    return learned


def _lineage(versions: Mapping[str, Version], name: str) -> Iterator[Version]:
    """A version and its ancestors, newest first; a learner's oldest are forgotten in time."""
    step: str | None = name
    while step is not None and step in versions:
        yield versions[step]
        step = versions[step].parent


def _own(version: Version, ticks: int) -> NDArray[np.bool_]:
    """The ticks that a version itself has learned."""
    own = np.zeros(ticks, dtype=bool)
    own[version.from_tick : version.to_tick] = True
    for start, stop in version.excluded:
        own[start:stop] = False
    return own


def first_responses(served: pa.Table) -> dict[str, int]:
    """The time (µs) of each version's first answer in the served log."""
    if not served.num_rows:
        return {}
    times = pa.table({"version": served["version"], "at": micros(served["served_at"])})
    grouped = times.group_by("version").aggregate([("at", "min")])
    return dict(zip(grouped["version"].to_pylist(), grouped["at_min"].to_pylist(), strict=True))


def first_to_answer(
    versions: Mapping[str, Version], responses: Mapping[str, int], ticks: int
) -> Learned:
    """The earliest response that knew each tick."""
    names: list[str | None] = [None] * ticks
    earliest = np.full(ticks, NEVER, dtype=np.int64)
    said: set[str] = set()  # whatever they learned is in `earliest` already
    for name, at_us in sorted(responses.items(), key=lambda pair: pair[1]):
        for version in _lineage(versions, name):
            if version.version in said:
                break  # and so were its ancestors
            said.add(version.version)
            new = np.flatnonzero(_own(version, ticks) & (earliest == NEVER))
            earliest[new] = at_us
            for tick in new.tolist():
                names[tick] = name
    return Learned(names, earliest)


def ticks_of_events(samples: Iterable[tuple[int, pa.Table]], events: int) -> Ints:
    """The tick whose samples first hold each event of the log, -1 where none does.

    `samples`: tick and its samples' offset columns, in order of ticks.
    """
    found = np.full(events, -1, dtype=np.int64)
    for tick, rows in samples:
        for name in rows.column_names:
            offsets = rows[name].to_numpy()
            offsets = offsets[offsets >= 0]
            found[offsets[found[offsets] < 0]] = tick
    return found


def staleness(
    arrival_us: Ints,
    tick_of: Ints,
    tick_at_us: Ints,
    learned: Learned,
    *,
    cycles: Sequence[Cycle],
    champions: Sequence[Champion],
) -> dict[str, Any]:
    """Percentiles in seconds over the events that some answering version has learned.

    Events not learned when traffic ended are counted in `unlearned`; they have no staleness yet.
    """
    answered = np.append(learned.response_us, NEVER)[tick_of]  # tick -1 reads the NEVER at the end
    known = (tick_of >= 0) & (answered != NEVER)
    tick = tick_of[known]
    started = {cycle.version: cycle.started_us for cycle in cycles if cycle.version is not None}
    promoted: dict[str, int] = {}
    for champion in champions:
        promoted.setdefault(champion.version, champion.at_us)
    names = [learned.version[t] or "" for t in range(len(tick_at_us))]
    started_us = np.array([started.get(name, 0) for name in names], dtype=np.int64)
    promoted_us = np.array([promoted.get(name, 0) for name in names], dtype=np.int64)
    marks = [arrival_us[known], tick_at_us[tick], started_us[tick], promoted_us[tick]]
    marks.append(answered[known])
    complete = (marks[2] > 0) & (marks[3] > 0)
    return {
        **_percentiles((marks[4] - marks[0]) / 1e6),
        "events": int(known.sum()),
        "unlearned": int((~known).sum()),
        "stages": {
            stage: _percentiles((marks[i + 1] - marks[i])[complete] / 1e6, with_max=False)
            for i, stage in enumerate(STAGES)
        },
    }


def served_staleness(served: pa.Table, versions: Mapping[str, Version]) -> tuple[Ints, Floats]:
    """For every second with answers: its time (µs) and how old the newest learned event was (s)."""
    at_us = micros(served["served_at"])
    names = served["version"].to_pylist()
    watermark = np.array([versions[n].watermark_us if n in versions else 0 for n in names])
    keep = watermark > 0 if len(names) else np.zeros(0, dtype=bool)
    second, first = np.unique(at_us[keep] // 1_000_000, return_index=True)
    age: Floats = (at_us[keep][first] - watermark[keep][first]) / 1e6
    return second * 1_000_000, age


def _percentiles(values: Floats, with_max: bool = True) -> dict[str, float | None]:
    ranks = {"p50": 50, "p95": 95} | ({"max": 100} if with_max else {})
    if not len(values):
        return dict.fromkeys(ranks)
    return {name: round(float(np.percentile(values, rank)), 3) for name, rank in ranks.items()}
