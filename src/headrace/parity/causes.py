"""Why a served value differs from what it is recomputed to: a closed list and its rules. Pure.

A value's way is: the log, the tick that computes a key's row, history (the offline rows) and the
online store, the server. The cause is the first place on that way where the evidence parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Names = NDArray[np.str_]

NEVER: Final = np.iinfo(np.int64).max
NONE: Final = ""


class Cause(StrEnum):
    """The first cause of a mismatch."""

    LATE_PUSH = "late_push"
    """History holds a newer row, and it came online later than the grace allows, or has not yet."""
    LOST_ROW = "lost_row"
    """A row that the log or history demands is missing: a tick wrote none, its part is gone, or
    online went on to later ticks and was never seen with it."""
    TTL = "ttl"
    """An expired row was served, or one that had not expired was withheld."""
    VERSION = "version"
    """Served by a version of another feature service, declaration or package than this one."""
    FORMULA = "formula"
    """The windows agree, the model input made of them does not."""
    STORE = "store"
    """Log and history agree: the online store, or reading it, changed the value or went back."""
    HISTORY = "history"
    """Log and server agree: the offline row is another one."""
    TICK = "tick"
    """History and server agree: the tick computed something else than the log gives."""


@dataclass(frozen=True)
class Rows:
    """Of one view, for each served row: moments in int64 us, 0 where there is none.

    `at_us`: stamp of the row that was read. `newest_us`: stamp of the newest row that history
    holds for the key and that was due (older than the grace, not expired). `in_history`: whether
    history holds the row that was read (true where none was).
    """

    served_us: Ints
    at_us: Ints
    newest_us: Ints
    in_history: Bools

    @property
    def stale(self) -> Bools:
        """Whether a newer row was due."""
        return self.newest_us > self.at_us


def of_rows(rows: Rows, ttl_us: int | None) -> Names:
    """Cause for each row that should not have been read, or is not there; "" where all is well.

    A row counts iff `at >= served_at - ttl`, as Feast has it. A newer row that was due is told
    by what the other served rows saw of its tick (a tick's rows are pushed together): seen
    before, so the store went back; seen only later, so the push was late; never, though later
    ticks were, so the push was lost; nothing of it or later, so it is late still.
    """
    found = np.full(len(rows.at_us), NONE, dtype="U9")
    found[~rows.in_history] = Cause.LOST_ROW
    expired = np.zeros(len(rows.at_us), dtype=np.bool_)
    if ttl_us is not None:
        expired = (rows.at_us > 0) & (rows.at_us < rows.served_us - ttl_us)
    stale = np.flatnonzero(rows.stale)
    same_us, later_us = _first_seen(rows, rows.newest_us[stale])
    withheld = Cause.STORE if ttl_us is None else Cause.TTL
    went_back = np.where(rows.at_us[stale] == 0, withheld, Cause.STORE)
    lost = (same_us == NEVER) & (later_us < NEVER)
    told = np.where(lost, Cause.LOST_ROW, Cause.LATE_PUSH)
    found[stale] = np.where(same_us <= rows.served_us[stale], went_back, told)
    found[expired] = Cause.TTL
    return found


def _first_seen(rows: Rows, ticks_us: Ints) -> tuple[Ints, Ints]:
    """When a row of each of those ticks was first served, and when one of a later tick."""
    order = np.lexsort((rows.served_us, rows.at_us))
    at_us, served_us = rows.at_us[order], rows.served_us[order]
    # earliest request among rows of this tick or a later one
    earliest = np.append(np.minimum.accumulate(served_us[::-1])[::-1], NEVER)
    low = np.searchsorted(at_us, ticks_us, side="left")
    high = np.searchsorted(at_us, ticks_us, side="right")
    same = np.where(high > low, np.append(served_us, NEVER)[low], NEVER)
    return same, earliest[high]


def of_windows(served: Ints, log: Ints, history: Ints) -> Names:
    """Cause for each window value, "" where the three agree; all are the values of one moment."""
    wrong = (served != log) | (served != history)
    told = np.select([log == history, served == history], [Cause.STORE, Cause.TICK], Cause.HISTORY)
    return np.where(wrong, told, NONE)


def of_inputs(wrong: Bools, upstream: Sequence[Names]) -> Names:
    """Cause for each model input that is `wrong`: that of the first window behind it, or none of
    them differs and it is the formula.
    """
    found = np.full(len(wrong), NONE, dtype="U9")
    for windows in upstream:
        found = np.where(found == NONE, windows, found)
    return np.where(wrong, np.where(found == NONE, Cause.FORMULA, found), NONE)
