"""What every arm of a race says of the same rows, by the version it held when each was served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.atomic import write_parquet
from headrace.declaration import LineSpec
from headrace.line import LineStore
from headrace.sample import read_samples

if TYPE_CHECKING:
    from headrace.model import Model

MOST_FILES: Final = 100
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Timeline:
    """The versions that an arm held: (since, in µs; version), oldest first."""

    arm: str
    spec: LineSpec
    held: Sequence[tuple[int, str]]

    def versions(self, at_us: Ints) -> NDArray[np.str_]:
        """The version held at each time, (n,); empty text before the first."""
        since = np.array([moment for moment, _ in self.held], dtype=np.int64)
        names = np.array(["", *(version for _, version in self.held)])
        found: NDArray[np.str_] = names[np.searchsorted(since, at_us, side="right")]
        return found


class Scorecard:
    """Scores of a race's arms by impression, kept as a Parquet file for each look at new ticks.

    A row's scores never change once its tick is committed, so each is computed once, whoever
    looks; a look that dies leaves a file or none.
    """

    def __init__(self, folder: Path, spec: LineSpec, home: Path, store: LineStore) -> None:
        self._folder = folder
        self._spec = spec
        self._home = home
        self._store = store
        self._models: dict[str, tuple[str, Model]] = {}
        self._kept: dict[str, pa.Table] = {}

    def extend(self, timelines: Sequence[Timeline], start: int, head: int) -> None:
        """Score the rows of the ticks [start, head) that no file has; an arm that came later
        has no scores (NaN) for rows before.
        """
        done = max([start, *(_ticks(path)[1] for path in self._folder.glob("*.parquet"))])
        if done >= head:
            return
        rows = read_samples(self._spec, self._home, done, head)
        rows = rows.filter(pc.equal(rows["revision"], 0)).combine_chunks()
        columns = {"impression_offset": rows["impression_offset"]}
        for timeline in timelines:
            columns[timeline.arm] = pa.array(self._score(timeline, rows))
        self._write(done, head, pa.table(columns))
        self._join(head)

    def _write(self, start: int, head: int, scores: pa.Table) -> None:
        write_parquet(self._folder / f"{start:08d}-{head:08d}.parquet", scores)

    def _join(self, head: int) -> None:
        """Make one file of many; killed in between, rows are there twice, with equal scores."""
        parts = sorted(self._folder.glob("*.parquet"))
        if len(parts) < MOST_FILES:
            return
        tables = [pq.read_table(path, partitioning=None) for path in parts]
        whole = pa.concat_tables(tables, promote_options="default")
        self._write(_ticks(parts[0])[0], head, whole)
        for path in parts:
            path.unlink()
        self._kept = {}

    def of(self, impressions: Ints, arms: Sequence[str]) -> dict[str, Floats]:
        """Scores by arm of the impressions with these offsets, (n,) each; NaN where unknown."""
        found = {arm: np.full(impressions.size, np.nan) for arm in arms}
        for path in self._folder.glob("*.parquet"):
            if path.name not in self._kept:
                self._kept[path.name] = pq.read_table(path, partitioning=None)
        if not self._kept or not impressions.size:
            return found
        known = pa.concat_tables(
            [self._kept[name] for name in sorted(self._kept)], promote_options="default"
        )
        offsets = known["impression_offset"].to_numpy()
        order = np.argsort(offsets, kind="stable")
        place = np.minimum(np.searchsorted(offsets, impressions, sorter=order), offsets.size - 1)
        row = order[place]
        there = offsets[row] == impressions
        for arm in set(arms) & set(known.column_names):
            found[arm][there] = known[arm].to_numpy()[row[there]]
        return found

    def _score(self, timeline: Timeline, rows: pa.Table) -> Floats:
        """What the server answered where this version served the row; otherwise computed here."""
        held = timeline.versions(rows["served_at"].cast(pa.int64()).to_numpy())
        served = rows["version"].to_numpy(zero_copy_only=False).astype(str)
        scores = np.where(held == served, rows["score"].to_numpy(), np.nan)
        ask = (held != served) & (held != "")
        for version in np.unique(held[ask]):
            at = np.flatnonzero(ask & (held == version))
            model = self._model(timeline.spec, str(version))
            scores[at] = model.predict(rows.take(pa.array(at)))
        return scores

    def _model(self, spec: LineSpec, version: str) -> Model:
        """The version in memory; arms of one declaration share a model, and load it in turns."""
        from headrace.model import Model

        declared = spec.model.model_dump_json()
        held = self._models.get(declared)
        if held is None:
            held = ("", Model(spec.model, spec.seed, conversion=spec.converts, blank=True))
        if held[0] != version:
            held[1].load_state(self._store.load(version)[1])
        self._models[declared] = (version, held[1])
        return held[1]


def _ticks(path: Path) -> tuple[int, int]:
    first, _, last = path.stem.partition("-")
    return int(first), int(last)
