"""What came before a window, and what came beside its samples: the data gate's reference.

Both are read from the committed ticks, so the same window has the same reference whoever asks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from headrace import baseline
from headrace.baseline import Figure, Vitals
from headrace.declaration import LineSpec
from headrace.quarantine import Quarantine
from headrace.sample import (
    TickManifest,
    head_tick,
    read_samples,
    read_tick,
    tick_as_of,
    ticks,
)

MOST_TICKS: Final = 3_000
"""So far back the reference reaches at most: its parts are many small files."""
EXPECTED_S: Final = 600.0
EXPECTED: Final = 10
"""So many seconds, or stretches, before one say what volume is to be expected in it."""
_TAIL: Final = 1 << 20  # bytes of malformed.jsonl that are read


def rows_before(spec: LineSpec, home: Path, tick: int, least: int = 0) -> pa.Table:
    """The newest `gates.data.reference_rows` samples before a tick, or `least` if that is more,
    without quarantined ones.
    """
    wanted, first, found = max(spec.gates.data.reference_rows, least), tick, 0
    refused = [(q["from"], q["to"]) for q in Quarantine(home).intervals()]
    while first > max(tick - MOST_TICKS, 0) and found < wanted:
        first -= 1
        if not any(start <= first < stop for start, stop in refused):
            found += read_tick(home, first).counts.get("samples", 0)
    samples = read_samples(spec, home, first, tick, exclude=refused)
    return samples.slice(max(samples.num_rows - wanted, 0))


def vitals(
    spec: LineSpec,
    home: Path,
    from_tick: int,
    to_tick: int,
    exclude: Sequence[tuple[int, int]] = (),
) -> Vitals:
    """What came in during the ticks `[from_tick, to_tick)`, without those in `exclude`.

    Engagements are those that became a label and those that ended otherwise; `seconds` and
    refusals are of all the ticks.
    """
    told = [
        manifest
        for manifest in ticks(home, from_tick, to_tick)
        if not any(start <= manifest.tick < stop for start, stop in exclude)
    ]
    if not told:
        return Vitals(0.0, 0, 0)
    began_us = read_tick(home, from_tick - 1).at_us if from_tick else told[0].at_us
    return _of_ticks(told, began_us, _refused(home, began_us, told[-1].at_us))


def figures(
    spec: LineSpec,
    home: Path,
    from_tick: int,
    to_tick: int,
    window: pa.Table,
    *,
    exclude: Sequence[tuple[int, int]] = (),
) -> dict[str, Figure]:
    """All figures of a window's samples, against the rows before it (`baseline.figures`)."""
    before = rows_before(spec, home, from_tick)
    came = vitals(spec, home, from_tick, to_tick, exclude)
    return baseline.figures(spec, window, before, came)


def _of_ticks(told: Sequence[TickManifest], began_us: int, refused: int) -> Vitals:
    counts = Counter[str]()
    for manifest in told:
        counts.update(manifest.counts)
    known = ("duplicate_engagement", *baseline.LOST)
    fates = {name: counts[name] for name in (*known, "duplicate_impression")}
    engagements = counts["positives"] + sum(counts[name] for name in known)
    seconds = max(told[-1].at_us - began_us, 0) / 1e6
    return Vitals(seconds, counts["events"], engagements, refused, fates)


def _refused(home: Path, after_us: int, until_us: int) -> int:
    """Malformed events that were received in `(after_us, until_us]`, as far as the tail tells."""
    path = home / "malformed.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL, 0))
        lines = file.read().splitlines()
    count = 0
    for line in reversed(lines):
        try:
            at_us = json.loads(line)["received_at"]
        except (ValueError, KeyError):  # the first may be cut by the tail, the last by a kill
            continue
        if at_us <= after_us:
            break
        count += at_us <= until_us
    return count


def symptoms(spec: LineSpec, home: Path, until_us: int) -> list[str]:
    """What a person must know of the newest `cadence.incremental` of events up to a moment (us),
    whatever was learned of it.

    Ticks come with events, so a silent source makes none. What is to be expected is the time
    before; nothing is of a line that has lived less than two such stretches.
    """
    length_us = spec.cadence.incremental
    head = head_tick(home)
    first = tick_as_of(home, until_us - length_us)
    if not first:
        return []
    found = vitals(spec, home, first, head)
    now = Vitals(length_us / 1e6, found.events, found.engagements, found.refused, found.fates)
    ended_us = read_tick(home, first - 1).at_us
    reach_us = max(int(EXPECTED_S * 1e6), EXPECTED * length_us)
    before = vitals(spec, home, max(tick_as_of(home, ended_us - reach_us), 1), first)
    return baseline.symptoms(now, before) if before.seconds >= 2 * now.seconds else []
