"""The runs of one kind of event under one key, and what the aggregates make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import ranges
from headrace.declaration import WindowFeature
from headrace.order import stable_order
from headrace.questions import Asked
from headrace.runs import Found, Run

Ints = NDArray[np.int64]
_SPANS: Final = 4  # a long merged run reaches over this part of the longest window at most
_SHORT: Final = 50_000  # rows whose merge costs less than asking one run more


@dataclass
class Track:
    """Events of one kind under one view's key: runs, the older the longer.

    With a `column`, only those events that have a value in it: what is missing is not there.
    """

    view: str
    event: str
    column: str | None
    features: tuple[WindowFeature, ...]
    appended: int = 0
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def of(cls, view: str, features: Sequence[WindowFeature]) -> list[Track]:
        """The tracks that a view's features need."""
        mine: dict[tuple[str, str | None], list[WindowFeature]] = {}
        for feature in features:
            column = feature.column if feature.skips_missing else None
            mine.setdefault((feature.event, column), []).append(feature)
        return [cls(view, event, column, tuple(some)) for (event, column), some in mine.items()]

    @property
    def name(self) -> str:
        """Prefix of the names of its tables."""
        return ".".join((self.view, self.event, *([self.column] if self.column else [])))

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns whose values some feature needs."""
        return tuple(dict.fromkeys(f.reads for f in self.features if f.reads is not None))

    @property
    def longest_us(self) -> int:
        """The longest of its windows."""
        return max(feature.window for feature in self.features)

    def push(self, run: Run) -> None:
        """Take the next rows, after merging those runs of similar size that are still held.

        So rows that expire between two appends are never merged, and a run that is merged to its
        full span is later dropped as one: no row is copied more often than the tiers demand.
        """
        while len(self.runs) > 1:
            older, newer = self.runs[-2:]
            if len(older) >= 2 * len(newer) or self._too_long(older, newer):
                break
            self.runs[-2:] = [older.followed_by(newer)]
        self.appended = run.stop
        self.runs.append(run)

    def _too_long(self, older: Run, newer: Run) -> bool:
        span = newer.times_us[-1] - older.times_us[0]
        return len(older) + len(newer) > _SHORT and bool(span * _SPANS > self.longest_us)

    def values(self, asked: Asked) -> dict[str, Ints]:
        """Every feature, in the order of `asked`.

        A search for each question answers count, sum, last and last_at; min, max and distinct
        read the rows that the asked keys have in the longest window, each once.
        """
        found = {f.name: np.full(len(asked.order), f.empty, dtype=np.int64) for f in self.features}
        if self.column is None:
            self._add_up(asked, found)
            return found
        last = [f for f in self.features if f.aggregate == "last"]
        if last:
            self._pick_newest(asked, last, found)
        others = [f for f in self.features if f.aggregate != "last"]
        if others:
            self._range_over(asked, others, found)
        return found

    def _add_up(self, asked: Asked, found: dict[str, Ints]) -> None:
        by_key = {f.name: np.zeros(len(asked.keys), dtype=np.int64) for f in self.features}
        for here in self._within_reach(asked):
            end_of_all = here.alike(0)
            for feature in self.features:
                begin_of_all = here.alike(feature.window)
                if feature.aggregate == "last_at":  # a later run's rows are never older
                    begin, end = here.before(feature.window), here.before(0)
                    some = end > begin
                    newest = here.run.times_us[here.run.rows_at(end[some] - 1)]
                    found[feature.name][here.rows[some]] = newest
                elif begin_of_all is None or end_of_all is None:
                    begin, end = here.before(feature.window), here.before(0)
                    here.add(found[feature.name], _amount(here.run, feature, begin, end))
                elif begin_of_all < end_of_all:  # the same rows whichever the moment
                    begin = here.run.place(here.ranks, begin_of_all)
                    end = here.run.place(here.ranks, end_of_all)
                    by_key[feature.name][here.keys] += _amount(here.run, feature, begin, end)
        for name, totals in by_key.items():
            if totals.any():
                found[name] += totals[asked.key_of]

    def _within_reach(self, asked: Asked) -> list[Found]:
        found = [run.find(asked, self.longest_us) for run in self.runs] if asked.keys.size else []
        return [here for here in found if here is not None]

    def _pick_newest(
        self, asked: Asked, features: list[WindowFeature], found: dict[str, Ints]
    ) -> None:
        column = self.features[0].column
        to_skip = {f.name: np.full(len(asked.order), f.rank - 1) for f in features}
        for here in reversed(self._within_reach(asked)):
            run, end = here.run, here.before(0)
            for feature in features:
                count = end - here.before(feature.window)
                skip = to_skip[feature.name][here.rows]
                hit = (skip >= 0) & (skip < count)
                rows = run.rows_at(end[hit] - 1 - skip[hit])
                found[feature.name][here.rows[hit]] = run.values[column][rows]
                to_skip[feature.name][here.rows] = np.where(hit, -1, skip - count)

    def _range_over(
        self, asked: Asked, features: list[WindowFeature], found: dict[str, Ints]
    ) -> None:
        column = self.features[0].column
        laid = _Laid.out(
            self._within_reach(asked), column, asked, {feature.window for feature in features}
        )
        for feature in features:
            if feature.aggregate != "distinct":
                best = np.minimum if feature.aggregate == "min" else np.maximum
                begin = laid.begin[feature.window]
                found[feature.name] = ranges.extremes(
                    best, laid.values, begin, laid.end, feature.empty
                )
        counted = [feature for feature in features if feature.aggregate == "distinct"]
        if counted:
            begin = np.concatenate([laid.begin[feature.window] for feature in counted])
            end = np.tile(laid.end, len(counted))
            totals = ranges.distinct(laid.owners, laid.values, begin, end)
            shares = np.split(totals, len(counted))
            found.update({f.name: share for f, share in zip(counted, shares, strict=True)})

    def changed(self, since_us: int, until_us: int) -> list[tuple[Ints, pa.Table]]:
        """Hashes and raw keys with a row that came or left a window meanwhile, distinct by run."""
        shifts = sorted({0, *(feature.window for feature in self.features)})
        found = []
        for run in self.runs:
            ranks = [run.keys_between(since_us - s, until_us - s) for s in shifts]
            here = np.unique(np.concatenate(ranks))
            if here.size:
                found.append((run.keys[here], run.raw_keys.take(here)))
        return found

    def expire(self, before_us: int) -> None:
        """Drop rows that no window asked at `before_us` or later reaches."""
        cutoff = before_us - self.longest_us
        kept = []
        for run in self.runs:
            gone = int(np.searchsorted(run.times_us, cutoff))
            if gone == len(run):
                continue
            # half a run at once, so that the cost of a rewrite is spread over the rows it frees
            kept.append(run.without_before(cutoff) if 2 * gone >= len(run) else run)
        self.runs = kept


def _amount(run: Run, feature: WindowFeature, begin: Ints, end: Ints) -> Ints:
    """Count or sum over the places `[begin, end)`."""
    if feature.aggregate == "count":
        return end - begin
    sums = run.sums[feature.column]
    return sums[end] - sums[begin]


@dataclass(frozen=True, eq=False)
class _Laid:
    """Rows within reach of the questions, of all runs side by side, by key and then arrival."""

    values: Ints  # (g,)
    owners: Ints  # (g,) index into asked.keys
    begin: dict[int, Ints]  # by window: (q,) place of the first row of each question
    end: Ints  # (q,) place after the last

    @classmethod
    def out(cls, reached: list[Found], column: str, asked: Asked, windows_us: set[int]) -> _Laid:
        size, longest = len(asked.order), max(windows_us)
        begin = {window: np.zeros(size, dtype=np.int64) for window in windows_us}
        end = np.zeros(size, dtype=np.int64)
        values, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for here in reached:
            owner = asked.key_of[here.rows]  # rising, and moments rise within a key
            first = np.flatnonzero(np.diff(owner, prepend=-1))
            low = here.before(longest)[first]
            high = here.before(0)[np.append(first[1:], len(owner)) - 1]
            count = high - low
            before = np.cumsum(count) - count
            places = np.repeat(low - before, count) + np.arange(count.sum())
            values.append(here.run.values[column][here.run.rows_at(places)])
            owners.append(np.repeat(owner[first], count))
            own_low = np.repeat(low, np.diff(np.append(first, len(owner))))
            end[here.rows] += here.before(0) - own_low
            for window in windows_us:
                begin[window][here.rows] += here.before(window) - own_low
        owner_of = np.concatenate(owners)
        order = stable_order(owner_of)
        owner_of = owner_of[order]
        start = np.searchsorted(owner_of, np.arange(len(asked.keys)))[asked.key_of]
        begin = {window: places + start for window, places in begin.items()}
        return cls(np.concatenate(values)[order], owner_of, begin, end + start)
