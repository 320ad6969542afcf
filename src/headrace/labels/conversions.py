"""The join of conversions to the clicks of their impressions, in any order of arrival.

Pure. Stands beside the join of clicks and changes nothing of it: that join hands over each click
that it attributed, and an impression may close there long before its conversions have come. All
deadlines count from arrival stamps, so any split of the log into ticks ends in the same labels:

- a click is open while `arrival < max(known_at, clicked_at) + attribution_window + grace`, where
  `known_at` is the moment at which the log held both the click and its impression;
- a conversion that finds no open click waits one horizon of the click join for it, and then ends
  as `unclicked_conversion`: a purchase that nobody saw clicked is no click-and-conversion.

Attribution is by `event_at`: `[click, click + attribution_window)`; the first in the log wins.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import ConversionSpec
from headrace.labels.shelf import Int64s, Shelf

CONVERSION_FATES: Final = (
    "duplicate_conversion",
    "conversion_before_click",
    "unclicked_conversion",
)
_FIELDS: Final = {
    "impression": np.int64,  # its offset in the event log
    "event_at": np.int64,  # of the impression
    "clicked_at": np.int64,
    "close_at": np.int64,
    "converted": np.int64,  # offset of the conversion, -1 without
    "vector": np.int64,  # offset in the served log once the click's row is out
    "revision": np.int8,  # of the next row; 0: the click has none yet, -1: it never will
    "said": np.bool_,  # a row, or a fate, has told the conversion
}
_IDENTITY: Final = pa.schema([pa.field("impression_id", pa.string(), nullable=False)])


class Click(NamedTuple):
    """An attributed click. `offset` is that of the record that came last, it or its impression."""

    offset: int
    impression_id: str
    impression: int
    event_at: int
    clicked_at: int
    known_at: int


class Waiting(NamedTuple):
    """A conversion whose click is not known."""

    impression_id: str
    event_at: int
    arrival_at: int


class Late(NamedTuple):
    """Conversions whose click has a row already, one item each."""

    impression: Int64s
    event_at: Int64s
    vector: Int64s
    revision: NDArray[np.int32]
    converted: Int64s

    def facts(self) -> dict[str, NDArray[Any]]:
        """What their rows say beside the served vector: nothing new of the click."""
        count = self.impression.size
        every = np.ones(count, dtype=np.bool_)
        return {
            "event_at": self.event_at,
            "revision": self.revision,
            "label": np.ones(count, np.int8),
            "positive_weight": np.zeros(count, np.float32),
            "negative_weight": np.zeros(count, np.float32),
            "impression_offset": self.impression,
            "engagement_offset": np.full(count, -1, np.int64),
            **conversion_facts(self.converted, every),
        }


def conversion_facts(converted: Int64s, corrects: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """What rows say of click-and-conversion.

    converted: offset of the conversion, -1 without; corrects: an earlier row of the impression
    has said that there is none.
    """
    is_conversion = converted >= 0
    return {
        "conversion": is_conversion.astype(np.int8),
        "conversion_positive_weight": is_conversion.astype(np.float32),
        "conversion_negative_weight": (~is_conversion).astype(np.float32) - corrects,
        "conversion_offset": converted,
    }


class Conversions:
    """Open clicks and waiting conversions; fates gather until `drain_fates`.

    `horizon_us` is that of the click join, `grace_us` what an arrival may be late.
    """

    def __init__(self, spec: ConversionSpec, horizon_us: int, grace_us: int) -> None:
        self.spec = spec
        self._horizon_us = horizon_us
        self._open_us = spec.attribution_window + grace_us
        self._clicks = Shelf(_IDENTITY, _FIELDS)
        self._untold: dict[int, int] = {}  # by impression: clicks that have no row yet
        self._waiting: dict[int, Waiting] = {}  # by offset, so in order of arrival
        self._waiting_by_id: dict[str, list[int]] = {}
        self._fates: list[tuple[int, str]] = []

    def resolve(self, clicks: list[Click], conversions: list[tuple[int, Waiting]]) -> None:
        """Join new clicks and conversions (with their log offsets), both in order of offsets."""
        self._shelve(clicks)
        opened = [(click.offset, click, None) for click in clicks]
        came = [(offset, None, row) for offset, row in conversions]
        for offset, click, row in sorted([*opened, *came], key=lambda item: item[0]):
            if click is not None:
                self._clicks.index[click.impression_id] = offset
                self._claim(click)
            elif row is not None:
                key = self._clicks.index.get(row.impression_id, -1)
                if key >= 0 and row.arrival_at < self._clicks["close_at"][self._place(key)]:
                    self._judge(offset, row, key)
                else:
                    self._waiting[offset] = row
                    self._waiting_by_id.setdefault(row.impression_id, []).append(offset)

    def _shelve(self, clicks: list[Click]) -> None:
        if not clicks:
            return
        columns = [np.array(column) for column in zip(*clicks, strict=True)]
        given = dict(zip(Click._fields, columns, strict=True))
        names = pa.array([click.impression_id for click in clicks], pa.string())
        close_at = np.maximum(given["known_at"], given["clicked_at"]) + self._open_us
        fields = {name: given[name] for name in ("impression", "event_at", "clicked_at")}
        rest = {"close_at": close_at, "converted": -1, "vector": -1, "revision": 0, "said": False}
        rows = pa.table([names], schema=_IDENTITY)
        self._clicks.add(rows, given["offset"], fields | rest)
        self._untold.update((click.impression, click.offset) for click in clicks)

    def _claim(self, click: Click) -> None:
        """Judge the conversions that waited for a click."""
        for offset in self._waiting_by_id.get(click.impression_id, [])[:]:
            row = self._waiting[offset]
            if click.known_at < row.arrival_at + self._horizon_us:  # else: waits for its fate
                self._release(offset)
                self._judge(offset, row, click.offset)

    def _judge(self, offset: int, row: Waiting, key: int) -> None:
        place, clicks = self._place(key), self._clicks
        lag = row.event_at - int(clicks["clicked_at"][place])
        if lag < 0:
            self._fates.append((offset, "conversion_before_click"))
        elif lag >= self.spec.attribution_window:
            self._fates.append((offset, "too_late"))
        elif clicks["converted"][place] >= 0:
            self._fates.append((offset, "duplicate_conversion"))
        else:
            clicks["converted"][place] = offset

    def _place(self, key: int) -> int:
        return int(np.searchsorted(self._clicks["offset"], key))

    def _release(self, offset: int) -> None:
        row = self._waiting.pop(offset)
        waiting = self._waiting_by_id[row.impression_id]
        waiting.remove(offset)
        if not waiting:
            del self._waiting_by_id[row.impression_id]

    def tell(self, impressions: Int64s, vectors: Int64s, revisions: Int64s) -> Int64s:
        """The clicks of these impressions get their row: returns its conversion's offset, or -1.

        vectors: offsets in the served log; revisions: of these rows.
        """
        keys = [self._untold.pop(impression) for impression in impressions.tolist()]
        places = self._clicks.places(np.array(keys, dtype=np.int64))
        converted: Int64s = self._clicks["converted"][places]
        self._clicks["vector"][places] = vectors
        self._clicks["revision"][places] = revisions + 1
        self._clicks["said"][places] = converted >= 0
        return converted

    def give_up(self, impressions: Int64s) -> None:
        """These impressions closed without a row: a conversion of theirs ends as `unserved`."""
        keys = [self._untold.pop(i) for i in impressions.tolist() if i in self._untold]
        self._clicks["revision"][self._clicks.places(np.array(keys, dtype=np.int64))] = -1

    def drain_late(self) -> Late:
        """Conversions that need a row of their own, in order of their impressions."""
        shelf = self._clicks
        came = shelf["alive"] & (shelf["converted"] >= 0) & ~shelf["said"]
        unserved = np.flatnonzero(came & (shelf["revision"] < 0))
        late = np.flatnonzero(came & (shelf["revision"] > 0))
        late = late[np.argsort(shelf["impression"][late], kind="stable")]
        shelf["said"][unserved] = shelf["said"][late] = True
        self._fates += [(offset, "unserved") for offset in shelf["converted"][unserved].tolist()]
        return Late(
            shelf["impression"][late],
            shelf["event_at"][late],
            shelf["vector"][late],
            shelf["revision"][late].astype(np.int32),
            shelf["converted"][late],
        )

    def expire(self, at_us: int) -> None:
        """Forget clicks that closed, and conversions that waited a horizon for theirs."""
        shelf = self._clicks
        closed = shelf["alive"] & (shelf["close_at"] <= at_us) & (shelf["revision"] != 0)
        shelf.drop(np.flatnonzero(closed))
        for offset in list(self._waiting):
            if self._waiting[offset].arrival_at + self._horizon_us > at_us:
                break
            self._release(offset)
            self._fates.append((offset, "unclicked_conversion"))

    def due(self, at_us: int) -> bool:
        """Whether `expire` at this time would say something."""
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and oldest.arrival_at + self._horizon_us <= at_us

    def claimed(self) -> Int64s:
        """Served vectors that a conversion may still repeat."""
        shelf = self._clicks
        vectors: Int64s = shelf["vector"][shelf["alive"] & (shelf["revision"] > 0) & ~shelf["said"]]
        return vectors

    def pending_offsets(self) -> Int64s:
        """Conversions that are neither in a sample nor have a fate yet."""
        shelf = self._clicks
        untold = shelf["converted"][shelf["alive"] & (shelf["converted"] >= 0) & ~shelf["said"]]
        return np.concatenate([untold, np.array(list(self._waiting), dtype=np.int64)])

    def drain_fates(self) -> list[tuple[int, str]]:
        """What became of conversions since the last call."""
        fates, self._fates = self._fates, []
        return fates

    def checkpoint(self) -> dict[str, pa.Table]:
        """The state as tables; equal states give equal tables."""
        alive = np.flatnonzero(self._clicks["alive"])
        clicks = self._clicks.take(alive)
        for name in ("offset", *_FIELDS):
            clicks = clicks.append_column(name, pa.array(self._clicks[name][alive]))
        waiting = [{"offset": offset, **row._asdict()} for offset, row in self._waiting.items()]
        return {
            "clicks": clicks.combine_chunks(),
            "waiting": pa.Table.from_pylist(waiting, schema=_WAITING_SCHEMA),
        }

    def restore(self, tables: dict[str, pa.Table]) -> Self:
        """Take over the tables of a checkpoint."""
        rows, shelf = tables["clicks"], self._clicks
        offsets = rows["offset"].to_numpy()
        fields = {name: rows[name].to_numpy(zero_copy_only=False) for name in _FIELDS}
        shelf.add(rows.select(["impression_id"]).cast(_IDENTITY), offsets, fields)
        shelf.index = dict(zip(rows["impression_id"].to_pylist(), offsets.tolist(), strict=True))
        untold = fields["revision"] == 0
        pairs = zip(fields["impression"][untold].tolist(), offsets[untold].tolist(), strict=True)
        self._untold = dict(pairs)
        for row in tables["waiting"].to_pylist():
            offset = row.pop("offset")
            self._waiting[offset] = Waiting(**row)
            self._waiting_by_id.setdefault(row["impression_id"], []).append(offset)
        return self


_WAITING_SCHEMA: Final = pa.schema(
    [
        ("offset", pa.int64()),
        ("impression_id", pa.string()),
        ("event_at", pa.int64()),
        ("arrival_at", pa.int64()),
    ]
)
