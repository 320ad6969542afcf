"""The committed ticks of a line and the samples in them: what training reads."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from headrace import parts
from headrace.declaration import LineSpec
from headrace.errors import InputError, IntegrityError
from headrace.events import sample_schema
from headrace.labels.revisions import newest, once
from headrace.quarantine import Quarantine

__all__ = [
    "Quarantine",
    "SampleTail",
    "TickManifest",
    "check_ticks",
    "count_samples",
    "head_tick",
    "read_samples",
    "read_tick",
    "sample_parts",
    "tick_as_of",
    "tick_of",
    "ticks",
]

_PART_ROWS = 1 << 16
_MANIFEST = re.compile(r"^(\d{8})\.json$")


@dataclass(frozen=True)
class TickManifest:
    """The commit of a tick: what it read and what it wrote (paths relative to the line's home).

    `at_us` is 1 us after the arrival of the last event of `events`; `events` and `served` are
    offset intervals `[from, to)`. A file that would be empty is None (or absent).
    """

    tick: int
    at_us: int
    events: tuple[int, int]
    served: tuple[int, int]
    samples: str | None
    fates: str | None
    features: dict[str, str]
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is stored."""
        body = asdict(self)
        files = {name: body.pop(name) for name in ("samples", "fates", "features")}
        return {
            **body,
            "events": list(self.events),
            "served": list(self.served),
            "files": files,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The stored manifest as a value."""
        return cls(
            tick=body["tick"],
            at_us=body["at_us"],
            events=(body["events"][0], body["events"][1]),
            served=(body["served"][0], body["served"][1]),
            counts=body["counts"],
            **body["files"],
        )


def head_tick(home: Path) -> int:
    """The number of committed ticks, which is the next tick's number (the first is 0).

    Manifests are numbered without gaps, so a few questions find the last one among a day's
    86,400; `check_ticks` is the look at all of them.
    """
    folder = home / "ticks"

    def committed(tick: int) -> bool:
        return _manifest(folder, tick).is_file()

    if not committed(0):
        return 0
    step = 1
    while committed(step):
        step *= 2
    last, beyond = step // 2, step
    while beyond - last > 1:
        middle = (last + beyond) // 2
        last, beyond = (middle, beyond) if committed(middle) else (last, middle)
    return beyond


def check_ticks(home: Path) -> None:
    """Raise `IntegrityError` when a manifest is missing before the newest one."""
    folder = home / "ticks"
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
    there = sorted(int(match[1]) for name in names if (match := _MANIFEST.match(name)))
    if there and there[-1] != len(there) - 1:
        lost = next(n for n, tick in enumerate(there) if n != tick)
        raise IntegrityError(f"{_manifest(folder, lost)}: missing; restore it")


def read_tick(home: Path, tick: int) -> TickManifest:
    """The manifest of a committed tick. Raises `IntegrityError` when it is missing or torn."""
    path = _manifest(home / "ticks", tick)
    try:
        return TickManifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise IntegrityError(f"{path}: not readable ({problem!r}); restore it") from problem


def ticks(home: Path, from_tick: int = 0, to_tick: int | None = None) -> list[TickManifest]:
    """Committed ticks of `[from_tick, to_tick)` in order, all by default."""
    head = head_tick(home)
    stop = head if to_tick is None else min(to_tick, head)
    return [read_tick(home, tick) for tick in range(from_tick, stop)]


def read_samples(
    spec: LineSpec,
    home: Path,
    from_tick: int,
    to_tick: int,
    exclude: Sequence[tuple[int, int]] = (),
    *,
    latest: bool = False,
    as_of_tick: int | None = None,
) -> pa.Table:
    """Samples of ticks `[from_tick, to_tick)` in stream order, without the excluded intervals.

    With `latest`, only the newest revision of an impression inside the interval remains, with
    the plain weights of its label, (1, 0) or (0, 1). With `as_of_tick` (at least `to_tick`; see
    `tick_as_of`) each impression first sampled inside the interval comes once, as it was known
    when that tick was next: corrected by any tick before it, in or behind the interval. Raises
    `InputError` beyond the head.
    """
    _require_committed(home, from_tick, to_tick)
    if as_of_tick is not None:
        head = head_tick(home)
        if not to_tick <= as_of_tick <= head or latest:
            raise InputError(
                f"as_of_tick={as_of_tick} must lie between to_tick ({to_tick}) and the head "
                f"({head}), without latest; choose another"
            )
        asked = read_samples(spec, home, from_tick, to_tick, exclude)
        return once(asked, read_samples(spec, home, to_tick, as_of_tick, exclude))
    schema = sample_schema(spec)
    paths = [
        home / manifest.samples
        for manifest in ticks(home, from_tick, to_tick)
        if manifest.samples is not None
        and not any(start <= manifest.tick < stop for start, stop in exclude)
    ]
    samples = parts.read_all(paths, schema).combine_chunks()
    return newest(samples) if latest else samples


def sample_parts(
    spec: LineSpec,
    home: Path,
    from_tick: int,
    to_tick: int,
    exclude: Sequence[tuple[int, int]] = (),
    *,
    columns: Sequence[str] | None = None,
    corrections_only: bool = False,
) -> Iterator[pa.Table]:
    """The rows of `read_samples` (without `latest`), part after part as they lie on the disk.

    Of `columns` only, if given. `corrections_only` passes over ticks that say they have none.
    A large part comes in several tables. Raises `InputError` beyond the head.
    """
    _require_committed(home, from_tick, to_tick)
    schema = sample_schema(spec)
    for tick in range(from_tick, to_tick):
        if any(start <= tick < stop for start, stop in exclude):
            continue
        manifest = read_tick(home, tick)
        unneeded = corrections_only and manifest.counts.get("corrections") == 0
        if manifest.samples is None or unneeded:
            continue
        yield from parts.batches(home / manifest.samples, schema, columns, _PART_ROWS)


def count_samples(
    home: Path, from_tick: int, to_tick: int, exclude: Sequence[tuple[int, int]] = ()
) -> int:
    """How many rows `read_samples` (without `latest`) has, by the parts' footers alone."""
    _require_committed(home, from_tick, to_tick)
    found = 0
    for manifest in ticks(home, from_tick, to_tick):
        left_out = any(start <= manifest.tick < stop for start, stop in exclude)
        if manifest.samples is not None and not left_out:
            found += parts.count(home / manifest.samples)
    return found


def _require_committed(home: Path, from_tick: int, to_tick: int) -> None:
    head = head_tick(home)
    if not 0 <= from_tick <= to_tick <= head:
        raise InputError(
            f"ticks {from_tick}-{to_tick}: {home} has committed ticks 0-{head}; ask inside them"
        )


class SampleTail:
    """Samples of ticks from a moving start to the head, each tick read once however often asked.

    For those who look every few seconds at rows of minutes or days. `columns`: what is kept.
    """

    def __init__(self, spec: LineSpec, home: Path, columns: Sequence[str] | None = None) -> None:
        self._spec = spec
        self._home = home
        self._columns = sample_schema(spec).names if columns is None else list(columns)
        self._asked: tuple[int, list[tuple[int, int]]] | None = None
        self._head = 0
        self._held: pa.Table | None = None

    def read(self, from_tick: int, to_tick: int, exclude: Sequence[tuple[int, int]]) -> pa.Table:
        """As `read_samples`; anew from `from_tick` when it or `exclude` is not what it was."""
        asked = (from_tick, [(start, stop) for start, stop in exclude])
        if self._held is None or self._asked != asked or to_tick < self._head:
            self._asked, self._head = asked, from_tick
            self._held = sample_schema(self._spec).empty_table().select(self._columns)
        if to_tick > self._head:
            new = read_samples(self._spec, self._home, self._head, to_tick, exclude=exclude)
            parts = [self._held, new.select(self._columns)]
            self._held, self._head = pa.concat_tables(parts).combine_chunks(), to_tick
        return self._held


def tick_as_of(home: Path, at_us: int) -> int:
    """How many ticks were committed for times up to `at_us` (int64 us): an `as_of_tick`."""
    return bisect_right(range(head_tick(home)), at_us, key=lambda tick: read_tick(home, tick).at_us)


def tick_of(home: Path, offset: int) -> int:
    """The tick that read the event of that offset: the first that can hold a sample of it."""
    return bisect_right(
        range(head_tick(home)), offset, key=lambda tick: read_tick(home, tick).events[1]
    )


def _manifest(folder: Path, tick: int) -> Path:
    return folder / f"{tick:08d}.json"
