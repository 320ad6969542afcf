"""The window kernel: integer aggregates by key over `[at - window, at)` of knowledge time.

One implementation for a micro-batch, a replay and a Spark partition. Everything is an int64 and
nothing is rounded, so the answer does not depend on how the log was cut into appends. Means and
rates are divisions of its sums and counts, made in `requests.transform`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec, WindowFeature
from headrace.errors import InputError, IntegrityError
from headrace.events import ARROW_TYPES
from headrace.hashes import cross64, hash64
from headrace.questions import Asked, Moments
from headrace.runs import Run
from headrace.tracks import Track

Ints = NDArray[np.int64]
_META = "meta"
_NEVER = np.iinfo(np.int64).min


class WindowState:
    """Events of the longest window, in memory: appended in order, asked at any moment since.

    `views` restricts the state to some of `spec.views` (a Spark job computes one at a time).
    """

    def __init__(self, spec: LineSpec, views: Collection[str] | None = None) -> None:
        self._spec = spec
        self._views = {
            view: features
            for view, features in spec.views.items()
            if views is None or view in views
        }
        self._last_us: int = _NEVER
        self._tracks = {view: Track.of(view, features) for view, features in self._views.items()}

    def append(self, resolved: pa.Table) -> None:
        """Take events: `knowledge_at` (int64 µs), `event`, `value` and the declared columns.

        Rows that have no value in a part of a key do not count for it; a null column counts 0
        in a sum, and min, max, distinct and last pass over it. Raises InputError when
        `knowledge_at` falls behind an earlier append.
        """
        if not resolved.num_rows:
            return
        resolved = self._in_order(resolved)
        times = _ints(resolved.column("knowledge_at"))
        events = {event: _rows_of(resolved, event, times) for event in self._events()}
        hashed: dict[str, Ints] = {}
        for view, features in self._views.items():
            hashes = key_hashes(resolved, features[0].key, hashed)
            for track in self._tracks[view]:
                rows, times = events[track.event]
                counts = hashes[rows] >= 0
                if track.column is not None:
                    counts &= resolved.column(track.column).is_valid().to_numpy()[rows]
                if not counts.all():
                    rows, times = rows[counts], times[counts]
                if rows.size:
                    self._push(track, resolved, rows, hashes[rows], times)

    def _in_order(self, resolved: pa.Table) -> pa.Table:
        times = _ints(resolved.column("knowledge_at"))
        if (times[1:] < times[:-1]).any():
            resolved = resolved.take(np.argsort(times, kind="stable"))
            times = np.sort(times)
        if times[0] < self._last_us:
            raise InputError(
                f"knowledge_at {times[0]} lies before {self._last_us}, which was appended "
                "earlier; append events in the order of the log"
            )
        self._last_us = int(times[-1])
        return resolved

    def _push(
        self, track: Track, resolved: pa.Table, rows: Ints, hashes: Ints, times: Ints
    ) -> None:
        schema = self._key_schema(track.features[0].key)
        raw = resolved.select(schema.names).cast(schema).combine_chunks()
        values = {name: self._integers(resolved, name)[rows] for name in track.reads}
        track.push(
            Run.of_rows(track.appended, hashes, raw, rows=rows, times_us=times, values=values)
        )

    def values(self, keys: pa.Table, at_us: NDArray[np.int64], view: str | None = None) -> pa.Table:
        """Window features of row i's keys over `[at_us[i] - window, at_us[i])`.

        `keys` holds the key columns (of all views, or of `view` alone). Returns one int64
        column for each window feature of the views asked, in declared order, row for row; a
        key with a null part has each feature's `empty`. Exact for moments not before the last
        `expire`.
        """
        at_us = np.asarray(at_us, dtype=np.int64)
        if len(at_us) != keys.num_rows:
            raise InputError(
                f"at_us has {len(at_us)} moments for {keys.num_rows} keys; give one each"
            )
        wanted = self._views if view is None else {view: self._features(view)}
        moments = Moments.of(at_us)
        hashed: dict[str, Ints] = {}
        found: dict[str, Ints] = {}
        for name, features in wanted.items():
            hashes = key_hashes(keys, features[0].key, hashed)
            newest = [track.runs[-1] for track in self._tracks[name] if track.runs]
            own = (run.asked_by(hashes, moments) for run in newest)
            asked = next(filter(None, own), None) or Asked.of(hashes, moments)
            for track in self._tracks[name]:
                for column, totals in track.values(asked).items():
                    found[column] = np.empty_like(totals)
                    found[column][asked.order] = totals
        declared = [feature.name for feature in self._spec.windows if feature.name in found]
        return pa.table(
            [found[name] for name in declared],
            schema=pa.schema([pa.field(name, pa.int64(), nullable=False) for name in declared]),
        )

    def changed(self, view: str, since_us: int, until_us: int) -> pa.Table:
        """Distinct keys of `view` whose values may differ between those two moments.

        Those with an event that came in `[since_us, until_us)` or left a window meanwhile.
        """
        key = self._features(view)[0].key
        found = [pair for track in self._tracks[view] for pair in track.changed(since_us, until_us)]
        if not found:
            return self._key_schema(key).empty_table()
        _, first = np.unique(np.concatenate([hashes for hashes, _ in found]), return_index=True)
        return pa.concat_tables([raw for _, raw in found]).combine_chunks().take(first)

    def expire(self, before_us: int) -> None:
        """Drop events that no window asked at `before_us` or later can reach."""
        for track in self._all_tracks():
            track.expire(before_us)

    def checkpoint(self) -> dict[str, pa.Table]:
        """Write all state as tables: `meta`, and one for each run.

        A run's table is named `<view>.<event>.<start>-<stop>` after its row numbers (or
        `<view>.<event>.<column>.…` where only rows with that column are held) and never changes
        under that name, so a writer may keep files that it already has.
        """
        tables = {_META: self._meta()}
        for track in self._all_tracks():
            for run in track.runs:
                columns = {"knowledge_at": run.times_us, **run.values}
                rows = pa.table({f"_{name}": pa.array(column) for name, column in columns.items()})
                for part in track.features[0].key:
                    rows = rows.append_column(part, run.raw_keys.column(part).take(run.owners))
                tables[f"{track.name}.{run.start:012d}-{run.stop:012d}"] = rows.combine_chunks()
        return tables

    def _meta(self) -> pa.Table:
        tracks = self._all_tracks()
        return pa.table(
            {
                "track": pa.array([track.name for track in tracks], pa.string()),
                "declaration": pa.array(
                    [_declaration(track.features) for track in tracks], pa.string()
                ),
                "appended": pa.array([track.appended for track in tracks], pa.int64()),
                "last_us": pa.array([self._last_us] * len(tracks), pa.int64()),
            }
        )

    @classmethod
    def restore(cls, spec: LineSpec, tables: Mapping[str, pa.Table]) -> Self:
        """Rebuild the state that wrote `tables`, run for run.

        Raises IntegrityError when they were written for other windows than those of `spec`.
        """
        state = cls(spec)
        meta = {row["track"]: row for row in tables[_META].to_pylist()} if _META in tables else {}
        for track in state._all_tracks():
            row = meta.get(track.name)
            if row is None or row["declaration"] != _declaration(track.features):
                raise IntegrityError(
                    f"the checkpoint does not hold the windows that are declared for {track.name}; "
                    "rebuild the state from the event log"
                )
            state._last_us = row["last_us"]
            track.appended = row["appended"]
            for name in sorted(n for n in tables if n.rpartition(".")[0] == track.name):
                start = int(name.rpartition(".")[2].partition("-")[0])
                track.runs.append(_run_of(track, start, tables[name]))
        return state

    def _key_schema(self, key: tuple[str, ...]) -> pa.Schema:
        return pa.schema([pa.field(part, ARROW_TYPES[self._spec.columns[part]]) for part in key])

    def _integers(self, resolved: pa.Table, name: str) -> Ints:
        column = resolved.column(name)
        return hash64(column) if self._spec.columns.get(name) == "string" else _ints(column)

    def _events(self) -> list[str]:
        return sorted({track.event for track in self._all_tracks()})

    def _all_tracks(self) -> list[Track]:
        return [track for tracks in self._tracks.values() for track in tracks]

    def _features(self, view: str) -> tuple[WindowFeature, ...]:
        if view not in self._views:
            raise InputError(f"view {view!r} is not among {sorted(self._views)}; name one of those")
        return self._views[view]


def _run_of(track: Track, start: int, rows: pa.Table) -> Run:
    key = track.features[0].key
    hashes = key_hashes(rows, key)
    values = {name: _ints(rows.column(f"_{name}")) for name in track.reads}
    times = _ints(rows.column("_knowledge_at"))
    every = np.arange(len(times), dtype=np.int64)
    return Run.of_rows(start, hashes, rows.select(key), rows=every, times_us=times, values=values)


def _rows_of(resolved: pa.Table, event: str, times: Ints) -> tuple[Ints, Ints]:
    """Rows of one kind of event, and their times."""
    is_event = pc.fill_null(pc.equal(resolved.column("event"), event), False)
    rows = np.flatnonzero(is_event.to_numpy())
    return rows, times[rows]


def _declaration(features: tuple[WindowFeature, ...]) -> str:
    return ";".join(feature.model_dump_json() for feature in features)


def key_hashes(
    table: pa.Table, key: tuple[str, ...], hashed: dict[str, Ints] | None = None
) -> Ints:
    """63-bit hash of the key columns, -1 where a part is null; `hashed` remembers columns."""
    hashed = {} if hashed is None else hashed
    for part in key:
        if part not in hashed:
            if part not in table.column_names:
                raise InputError(f"the table has no key column {part!r}; pass {list(key)}")
            hashed[part] = hash64(table.column(part))
    parts = [hashed[part] for part in key]
    if len(parts) == 1:
        return parts[0]
    missing = np.logical_or.reduce([part < 0 for part in parts])
    crossed = cross64(parts)
    return np.where(missing, np.int64(-1), crossed) if missing.any() else crossed


def _ints(column: pa.ChunkedArray) -> Ints:
    return np.asarray(column.combine_chunks().cast(pa.int64()).fill_null(0).to_numpy())
