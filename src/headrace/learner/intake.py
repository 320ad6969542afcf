"""New ticks, put through the data gate chunk by chunk.

A chunk is some ticks of samples. The gate sees it at the end of a sliding window of the rows
accepted before it, so that rates are not judged on a second's rows. If those rows are odd by
themselves by now, a beginning that nobody could know for one, they speak against no chunk any more.

When traffic begins, after a pause too, clicks come at once and the negatives of the same
impressions `provisional_after` later: for so long, and half of it more while traffic grows, the
rows look all clicked, and their labels are judged by nobody. Refused ticks are no pause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import rules
from headrace.declaration import LineSpec
from headrace.labels.revisions import unsettled
from headrace.sample import head_tick, read_samples, read_tick
from headrace.settings import Settings
from headrace.train import quarantined

WINDOW_US: Final = 30_000_000
PATIENCE_US: Final = 60_000_000
"""Longer waits for silence are not waited for here: such a line's rates are judged as they come."""
MOST_TICKS: Final = 120
"""Of one chunk, so that a learner that was away catches up in steps of a known size."""


@dataclass(frozen=True)
class Chunk:
    """Ticks `[from_tick, to_tick)` and their samples; `reasons` why the data gate refused them.

    `window`: the sliding window that ends with them, as the gate saw it; `settled`: which of its
    rows may tell the label rate.
    """

    from_tick: int
    to_tick: int
    samples: pa.Table
    window: pa.Table
    settled: NDArray[np.bool_]
    reasons: list[str]

    @property
    def to_evaluate(self) -> pa.Table:
        """Those of the samples whose labels may judge a model."""
        own = self.settled[self.window.num_rows - self.samples.num_rows :]
        return self.samples.filter(pa.array(own))


class Intake:
    """Follows the ticks of a line. `ticks_a_step`: of each chunk (None: as many as there are)."""

    def __init__(self, settings: Settings, spec: LineSpec, ticks_a_step: int | None = None) -> None:
        self._settings, self._spec = settings, spec
        self._home = settings.line_home(spec.line)
        self._exactly = ticks_a_step
        self._silence_us = _silence_us(spec)
        self._window_us = max(WINDOW_US, 3 * self._silence_us)
        self.start_again(0)

    def start_again(self, tick: int) -> None:
        """Take up the ticks from this one on; what came before it is the window's beginning."""
        self.next_tick = self._read_to = tick
        self._waiting: list[pa.Table] = []
        self._recent: list[tuple[int, pa.Table]] = []  # (time of the chunk's last tick, rows)
        self._start_us = 0
        self._busy_us: list[int] = []  # times of the window's ticks that have samples, refused too
        if tick == 0:
            return
        first, until_us = tick, read_tick(self._home, tick - 1).at_us
        while first > 0 and read_tick(self._home, first - 1).at_us > until_us - self._window_us:
            first -= 1
        for each in range(first, tick):
            self._recent.append((read_tick(self._home, each).at_us, self._samples(each, each + 1)))
            self._note(each, each + 1)
        self._start_us = read_tick(self._home, first - 1).at_us if first else 0

    def next(self) -> Chunk | None:
        """The next chunk, judged; None while too little has come. It is not returned again."""
        until = self._until()
        if until is None:
            return None
        if until > self._read_to:
            self._waiting.append(self._samples(self._read_to, until))
            self._note(self._read_to, until)
            self._read_to = until
        samples = pa.concat_tables(self._waiting)
        if not samples.num_rows and self._only_quarantine():
            return self._done(samples, samples, np.zeros(0, np.bool_), [])
        window = pa.concat_tables([*(rows for _, rows in self._recent), samples]).combine_chunks()
        settled = self._settled(window)
        judged = settled[window.num_rows - samples.num_rows :].sum()
        if judged < (1 if self._exactly else self._spec.gates.data.min_rows):
            return None
        demands = rules.declared(self._spec)
        reasons = rules.broken(rules.frame(self._spec, window, settled), demands)
        if reasons and self._recent_is_odd(window, settled, before := len(window) - len(samples)):
            self._recent.clear()
            window, settled = samples, settled[before:]
            reasons = rules.broken(rules.frame(self._spec, window, settled), demands)
        return self._done(samples, window, settled, reasons)

    def _recent_is_odd(self, window: pa.Table, settled: NDArray[np.bool_], rows: int) -> bool:
        """Whether the window's first `rows`, all accepted, break a rule by themselves."""
        if not rows:
            return False
        demands = [rule for rule in rules.declared(self._spec) if rule.kind != "rows"]
        recent = rules.frame(self._spec, window.slice(0, rows), settled[:rows])
        return bool(rules.broken(recent, demands))

    def _until(self) -> int | None:
        """The tick up to which to read now, None when there is nothing new to read."""
        head = head_tick(self._home)
        if self._exactly is not None:
            until = self.next_tick + self._exactly
            while until <= self._read_to:  # too little so far: one chunk's worth more
                until += self._exactly
            return until if until <= head else None
        until = min(head, max(self.next_tick + MOST_TICKS, self._read_to + 1))
        return until if until > self._read_to else None

    def _done(
        self, samples: pa.Table, window: pa.Table, settled: NDArray[np.bool_], reasons: list[str]
    ) -> Chunk:
        chunk = Chunk(self.next_tick, self._read_to, samples, window, settled, reasons)
        self.next_tick, self._waiting = self._read_to, []
        if not reasons and samples.num_rows:
            until_us = read_tick(self._home, self._read_to - 1).at_us
            self._recent.append((until_us, samples))
            while self._recent[0][0] <= until_us - self._window_us:
                self._recent.pop(0)
            held = next(rows for _, rows in self._recent if rows.num_rows)
            oldest_us = held["emitted_at"][0].cast(pa.int64()).as_py()  # rows come in rising order
            while self._busy_us[0] < oldest_us:
                self._start_us = self._busy_us.pop(0)
        return chunk

    def _note(self, from_tick: int, to_tick: int) -> None:
        """Remember at which times something was emitted, be it in quarantine."""
        told = (read_tick(self._home, tick) for tick in range(from_tick, to_tick))
        self._busy_us += [each.at_us for each in told if each.samples is not None]

    def _only_quarantine(self) -> bool:
        refused = quarantined(self._settings, self._spec, self.next_tick, self._read_to)
        return sum(stop - start for start, stop in refused) > 0

    def _samples(self, from_tick: int, to_tick: int) -> pa.Table:
        excluded = quarantined(self._settings, self._spec, from_tick, to_tick)
        return read_samples(self._spec, self._home, from_tick, to_tick, excluded)

    def _settled(self, window: pa.Table) -> NDArray[np.bool_]:
        """Rows that may tell the label rate: not those of the first wait after a pause."""
        settled = ~unsettled(self._spec, window)
        emitted_us = window["emitted_at"].cast(pa.int64()).to_numpy()
        if not self._silence_us or not emitted_us.size:
            return settled
        busy_us = np.array(self._busy_us)
        known = known_after_pauses(busy_us, self._start_us, self._silence_us)
        told: NDArray[np.bool_] = settled & known[np.searchsorted(busy_us, emitted_us)]
        return told


def known_after_pauses(
    emitted_us: NDArray[np.int64], start_us: int, silence_us: int
) -> NDArray[np.bool_]:
    """At which times negatives came as well as positives.

    emitted_us: (n,) rising; start_us: end of what was emitted before them. A pause of `silence_us`
    or more ends with clicks alone, until the impressions behind them have been silent for so long;
    as traffic grows to its level there are too many of them for half of that time more.
    """
    pauses = np.diff(emitted_us, prepend=start_us) >= silence_us
    begun = np.maximum.accumulate(np.where(pauses, emitted_us, -2 * silence_us))
    known: NDArray[np.bool_] = emitted_us >= begun + silence_us * 3 // 2
    return known


def _silence_us(spec: LineSpec) -> int:
    """How long after its impression a negative is emitted; 0 where that is not to be waited for."""
    label = spec.label
    waits = label.outcome == "implicit" and label.delayed_feedback != "fnw"
    if not waits or label.patience_us > PATIENCE_US:
        return 0
    return label.patience_us
