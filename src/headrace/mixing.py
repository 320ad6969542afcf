"""Older samples mixed into the rows of an incremental training: `model.replay_share`.

A window of seconds holds the events of the moment; some rows of the past beside them keep a model
from forgetting the rest. Which rows follows from the line's seed and the window alone:

- ticks are drawn evenly over the past, and of each the same number of rows;
- a row is drawn only when its impression is settled: nothing can correct it any more, so what it
  teaches here will not be taken back elsewhere, and it takes nothing back itself. It has the plain
  weights of its newest label;
- ticks that ever lay in quarantine, released or not, are left out, and so are impressions whose
  label a person corrected.

An old row weighs what it weighed: nothing makes up for its being learned again. So the model
sees a mixture of the window and the past, and its running statistics count old rows once more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.atomic import write_bytes
from headrace.cases import CaseBook
from headrace.declaration import LineSpec
from headrace.labels.revisions import newest, thin_negatives
from headrace.labels.state import settled_after_us
from headrace.sample import Quarantine, head_tick, read_samples, read_tick, sample_parts, tick_as_of

DRAWS: Final = 16
"""Ticks that the old rows come from, if each has enough of them."""
MOST_DRAWS: Final = 64
BLOCK_TICKS: Final = 1024
_STREAM: Final = 3  # of random numbers: 1 and 2 are those of fresh weights


def mixed(spec: LineSpec, home: Path, from_tick: int, to_tick: int, rows: pa.Table) -> pa.Table:
    """The rows of the window `[from_tick, to_tick)`, in order, with older samples between them.

    Of the result `model.replay_share` are old, as far as the past has so many. Share 0 gives the
    same table.
    """
    share = spec.model.replay_share
    wanted = int(rows.num_rows * share / (1 - share))
    if not wanted:
        return rows
    draw = np.random.default_rng([spec.seed, _STREAM, from_tick, to_tick])
    corrected = CaseBook(spec, home).corrections(0, to_tick, ())["impression_offset"]
    old = _older(spec, home, from_tick, wanted, draw, corrected)
    total = rows.num_rows + old.num_rows
    is_old = np.zeros(total, np.bool_)
    is_old[draw.choice(total, old.num_rows, replace=False)] = True
    place = np.empty(total, np.int64)
    place[~is_old] = np.arange(rows.num_rows)
    place[is_old] = rows.num_rows + draw.permutation(old.num_rows)
    return pa.concat_tables([rows, old]).take(pa.array(place)).combine_chunks()


def _older(  # noqa: PLR0917
    spec: LineSpec,
    home: Path,
    from_tick: int,
    wanted: int,
    draw: np.random.Generator,
    but: pa.ChunkedArray,
) -> pa.Table:
    """At most `wanted` settled rows of ticks before `from_tick`, none of the impressions `but`."""
    found: list[pa.Table] = []
    count, each = 0, -(-wanted // DRAWS)
    for tick in _drawn_ticks(spec, home, from_tick, draw):
        settled = _settled(spec, home, tick, from_tick)
        if len(but):
            wrong = pc.is_in(settled["impression_offset"], value_set=but)
            settled = settled.filter(pc.invert(wrong))
        taken = draw.permutation(settled.num_rows)[: min(each, wanted - count)]
        found.append(settled.take(pa.array(np.sort(taken))))
        count += len(taken)
        if count == wanted:
            break
    empty = read_samples(spec, home, 0, 0)
    return pa.concat_tables([empty, *found]).combine_chunks()


def _drawn_ticks(
    spec: LineSpec, home: Path, from_tick: int, draw: np.random.Generator
) -> Iterator[int]:
    """Different ticks, each as likely, of those whose impressions may be settled."""
    if not from_tick:
        return
    horizon_us = settled_after_us(spec)
    stop = min(tick_as_of(home, read_tick(home, from_tick - 1).at_us - horizon_us), from_tick)
    refused = [(q["from"], q["to"]) for q in Quarantine(home).ever()]
    seen: set[int] = set()
    while len(seen) < min(stop, MOST_DRAWS):
        tick = int(draw.integers(stop))
        if tick not in seen and not any(start <= tick < end for start, end in refused):
            yield tick
        seen.add(tick)


def _settled(spec: LineSpec, home: Path, tick: int, from_tick: int) -> pa.Table:
    """Rows of a tick that are the last word on their impression, as they are to be learned."""
    rows = read_samples(spec, home, tick, tick + 1)
    if not rows.num_rows:
        return rows
    horizon_us = settled_after_us(spec)
    event_us = rows["event_at"].cast(pa.int64()).to_numpy()
    closes_us = np.maximum(event_us, read_tick(home, tick).at_us) + horizon_us
    closed = closes_us <= read_tick(home, from_tick - 1).at_us
    until = min(tick_as_of(home, int(closes_us[closed].max(initial=0))) + 1, from_tick)
    later = _corrected(spec, home, tick + 1, max(until, tick + 1))
    first = pc.equal(rows["revision"], 0)
    outdated = pc.and_(first, pc.is_in(rows["impression_offset"], value_set=pa.array(later)))
    kept = rows.filter(pc.and_(pa.array(closed), pc.invert(outdated)))
    return thin_negatives(spec, newest(kept))


def _corrected(spec: LineSpec, home: Path, from_tick: int, to_tick: int) -> NDArray[np.int64]:
    """Log offsets of the impressions that ticks `[from_tick, to_tick)`, and perhaps others,
    correct.

    What a block of `BLOCK_TICKS` ticks corrects is kept in a file once all of them are committed.
    """
    head, found = head_tick(home), [np.empty(0, np.int64)]
    for block in range(from_tick // BLOCK_TICKS, -(-to_tick // BLOCK_TICKS)):
        start, stop = block * BLOCK_TICKS, (block + 1) * BLOCK_TICKS
        if stop > head:
            found.append(_read_corrected(spec, home, max(start, from_tick), min(stop, to_tick)))
            continue
        path = home / "corrections" / f"{block:08d}.npy"
        if not path.exists():
            content = io.BytesIO()
            np.save(content, _read_corrected(spec, home, start, stop))
            write_bytes(path, content.getvalue())
        found.append(np.load(path))
    return np.concatenate(found)


def _read_corrected(spec: LineSpec, home: Path, start: int, stop: int) -> NDArray[np.int64]:
    columns = ("impression_offset", "revision")
    parts = sample_parts(spec, home, start, stop, columns=columns, corrections_only=True)
    found = [part.filter(pc.greater(part["revision"], 0))["impression_offset"] for part in parts]
    return np.concatenate([np.empty(0, np.int64), *(column.to_numpy() for column in found)])
