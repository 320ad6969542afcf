"""A recording on its own clock: what was shown, and what is known to have followed.

Nobody chose by score what happened, so the same impressions come whatever a model says. Each is
answered at its own moment, from windows that are exact at that moment, and what followed arrives
when it became known; a poison spoils both on their way.
"""

from __future__ import annotations

import copy
from datetime import datetime, timedelta
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.drill.poison import CLEAN, Columns, Poison, Shown
from headrace.drill.stage import Passage, Score, Seen, Tally
from headrace.events import IMPRESSION

_SECOND_US: Final = 1_000_000
_HOUR_US: Final = 3_600 * _SECOND_US


class Recorded:
    """Recorded traffic of one line (see `Stage`), from `begins_h` hours after a local midnight.

    events: of `source.read_events`; a step is as long as the line's `cadence.incremental`. The
    seed is of what a poison draws and of the milliseconds that events travel.
    """

    ranks = False

    def __init__(self, spec: LineSpec, events: pa.Table, seed: int, begins_h: int = 0) -> None:
        self.spec, self._seed = spec, seed
        self._shown = _shown(spec, events)
        self._zone = ZoneInfo(spec.timezone)
        self._step_us = spec.cadence.incremental
        times, begins_us = self._shown.at_us, begins_h * _HOUR_US
        self.at_us = _midnight(int(times[0]) - begins_us, self._zone) + begins_us
        self._end_us = _midnight(int(times[-1]) - begins_us, self._zone, days=1) + begins_us
        self.passage = Passage(spec, self.at_us)

    @property
    def day(self) -> str:
        """See `Stage.day`; an ISO date in the line's timezone."""
        return f"{datetime.fromtimestamp(self.at_us / _SECOND_US, self._zone):%Y-%m-%d}"

    def lasts(self, seconds: int) -> bool:
        """See `Stage.lasts`."""
        return self.at_us + seconds * _SECOND_US <= self._end_us

    def copy(self) -> Self:
        """See `Stage.copy`; the recording itself is shared."""
        again = copy.copy(self)
        again.passage = copy.deepcopy(self.passage)
        return again

    def play(self, seconds: int, score: Score | None, version: str, poison: Poison = CLEAN) -> Seen:
        """What was recorded of so many seconds, answered with `score` (None: by nobody)."""
        tally = Tally()
        end_us = self.at_us + seconds * _SECOND_US
        while self.at_us < end_us:
            step_end_us = min(self.at_us + self._step_us, end_us)
            shown = self._asked(step_end_us, poison)
            rng = np.random.default_rng([self._seed, self.at_us, 6])
            tally.refused += self.passage.send(poison.sent(shown, self.spec, rng))
            batch = self.passage.arrived(step_end_us)
            # exact: a window at a moment holds nothing that arrived at it or later
            vectors = self.passage.vectors(shown.columns, shown.at_us, shown.at_us)
            scores = np.full(len(shown.ids), np.nan)
            if score is not None and shown.ids:
                scores = score(vectors)
            tally.truth.append((shown.happened[shown.known], scores[shown.known]))
            served = self.passage.served(shown, vectors, scores, version)
            tally.take(batch, self.passage.emitted(served, step_end_us))
            self.at_us = step_end_us
        return tally.seen(seconds)

    def _asked(self, end_us: int, poison: Poison) -> Shown:
        """The impressions from here to `end_us`, as a poisoned application describes them."""
        low, high = np.searchsorted(self._shown.at_us, [self.at_us, end_us])
        part = slice(int(low), int(high))
        whole = self._shown
        columns = {name: values[part] for name, values in whole.columns.items()}
        rng = np.random.default_rng([self._seed, self.at_us, 5])
        return Shown(
            ids=whole.ids[part],
            at_us=whole.at_us[part],
            columns=poison.asked(columns, whole.happened[part], rng),
            happened=whole.happened[part],
            known=whole.known[part],
            delay_us=whole.delay_us[part],
        )


def _shown(spec: LineSpec, events: pa.Table) -> Shown:
    """All impressions in the order of their moments, each with what followed it, if anything."""
    is_shown = pc.equal(events["event"], IMPRESSION)
    shown, known = events.filter(is_shown), events.filter(pc.invert(is_shown))
    found = pc.index_in(shown["impression_id"], value_set=known["impression_id"].combine_chunks())
    at_us, known_us = _us(shown["arrival_at"]), _us(known["arrival_at"])
    has = np.asarray(found.is_valid().to_numpy(), dtype=np.bool_)
    place = np.asarray(found.fill_null(0).to_numpy(), dtype=np.int64)
    happened, delay_us = np.zeros(len(at_us), np.bool_), np.zeros(len(at_us), np.int64)
    happened[has] = known["value"].to_numpy()[place[has]] > 0
    delay_us[has] = known_us[place[has]] - at_us[has]
    return Shown(
        ids=shown["impression_id"].to_pylist(),
        at_us=at_us,
        columns=_columns(spec, shown),
        happened=happened,
        known=has | (spec.label.outcome == "implicit"),
        delay_us=delay_us,
    )


def _columns(spec: LineSpec, shown: pa.Table) -> Columns:
    """Declared columns as arrays: numbers where each is one, else objects with None for null."""
    made: dict[str, Any] = {}
    for name, kind in spec.columns.items():
        column = shown[name]
        if kind == "float" or (kind == "int" and not column.null_count):
            made[name] = column.to_numpy()
        else:
            made[name] = np.array(column.to_pylist(), dtype=object)
    return made


def _us(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _midnight(at_us: int, zone: ZoneInfo, days: int = 0) -> int:
    """The first instant of the local day, or of one so many days later."""
    day = datetime.fromtimestamp(at_us / _SECOND_US, zone) + timedelta(days=days)
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * _SECOND_US
