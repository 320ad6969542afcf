"""The join of engagements to their impressions, in any order of arrival.

Pure. What `labels.LabelState` builds on; its docstring states the deadlines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.errors import InputError, IntegrityError
from headrace.events import IMPRESSION, event_schema
from headrace.labels.conversions import Click
from headrace.labels.shelf import Int64s, Shelf

MARK: Final = "mark"
FATE_SCHEMA: Final = pa.schema(
    [pa.field("offset", pa.int64(), nullable=False), pa.field("fate", pa.string(), nullable=False)]
)
_Column: TypeAlias = pa.ChunkedArray | pa.Array
OPEN, NEGATIVE, DONE = 0, 1, 2  # nothing emitted, a (provisional) negative emitted, final
PASSED = 3  # its vector holds defaults: nothing is emitted, its fate is told when it closes
FIELDS: Final = {
    "event_at": np.int64,
    "arrival_at": np.int64,
    "close_at": np.int64,
    "engaged": np.int64,  # offset of the engagement behind the label, -1 without
    "label": np.int8,
    "vector": np.int64,  # offset in the served log, -1 while it has not come
    "stage": np.int8,
}


class Early(NamedTuple):
    """An engagement whose impression has not come."""

    impression_id: str
    event_at: int
    arrival_at: int
    value: int


@dataclass
class _Engagements:
    """Engagements beside the offset of the impression that they name."""

    offset: list[int] = field(default_factory=list)
    event_at: list[int] = field(default_factory=list)
    arrival_at: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    impression: list[int] = field(default_factory=list)


class Attribution:
    """Open impressions and early engagements; fates gather until `drain_fates`.

    `served` is the shelf of vectors, asked for each new impression's.
    """

    def __init__(self, spec: LineSpec, horizon_us: int, served: Shelf) -> None:
        self.spec = spec
        self.horizon_us = horizon_us
        self.last_arrival_us = -1
        declared = [event_schema(spec).field(name) for name in spec.columns]
        identity = pa.field("impression_id", pa.string(), nullable=False)
        self.impressions = Shelf(pa.schema([identity, *declared]), FIELDS)
        self.early: dict[int, Early] = {}
        self.superseded: dict[str, list[int]] = {}  # closed, but not yet through `emit`
        self._served = served
        self._early_by_id: dict[str, list[int]] = {}
        self._fates: list[tuple[Int64s, str]] = []
        self._clicks: list[Click] = []  # attributed since the last look, where conversions follow
        self._resolved_schema = pa.schema(
            [
                ("knowledge_at", pa.int64()),
                ("event", pa.string()),
                ("value", pa.int64()),
                ("offset", pa.int64()),
                *declared,
            ]
        )

    def resolve(self, events: pa.Table) -> pa.Table:
        """See `LabelState.resolve`."""
        arrival = as_us(events, "arrival_at")
        if arrival.size == 0:
            return self._resolved_schema.empty_table()
        if arrival[0] < self.last_arrival_us or np.any(np.diff(arrival) < 0):
            raise IntegrityError("arrival_at falls inside the event log; restore the log")
        self._check_names(events)
        ids = as_strings(events, "impression_id")
        parts, start = [], 0
        while start < arrival.size:
            stop = self._stretch(ids, arrival, start)
            parts.append(self._resolve_stretch(events.slice(start, stop - start)))
            start = stop
        self.last_arrival_us = int(arrival[-1])
        resolved = pa.concat_tables(parts).combine_chunks()
        if len(parts) == 1:
            return resolved
        # Two stretches may share a stamp: ties stand by offset, however the log is cut or shared.
        is_click = resolved["event"].to_numpy() != IMPRESSION
        ties = (as_us(resolved, "offset"), is_click, as_us(resolved, "knowledge_at"))
        return resolved.take(pa.array(np.lexsort(ties)))

    def _stretch(self, ids: list[str], arrival: Int64s, start: int) -> int:
        """End of the longest stretch in which no id outlives its impression's close.

        Inside it every record sees the same open impressions, whatever its place.
        """
        stop = int(np.searchsorted(arrival, arrival[start] + self.horizon_us, side="left"))
        while True:
            found = self.impressions.find(ids[start:stop])
            known = np.flatnonzero(found >= 0)
            close = self.impressions["close_at"][self.impressions.places(found[known])]
            outlived = known[arrival[start:stop][known] >= close]
            if outlived.size == 0:
                return stop
            if outlived[0] > 0:
                return start + int(outlived[0])
            self.superseded.setdefault(ids[start], []).append(
                self.impressions.index.pop(ids[start])
            )

    def _resolve_stretch(self, events: pa.Table) -> pa.Table:
        kinds = np.asarray(as_strings(events, "event"), dtype=object)
        offsets = as_us(events, "offset")
        self.say(offsets[kinds == MARK], MARK)
        impressions = events.filter(pa.array(kinds == IMPRESSION))
        engagements = events.filter(pa.array(kinds == self.spec.label.engagement))
        kept = self._register(impressions)
        known, places, clicked_at = self._attribute(
            self._gather(engagements, as_strings(kept, "impression_id"))
        )
        arrival = as_us(kept, "arrival_at")
        clicks = self.impressions.take(places)
        if self.spec.converts:
            self._hand_on(as_strings(clicks, "impression_id"), known, places, clicked_at)
        resolved = pa.concat_tables(
            [
                self._shape(IMPRESSION, kept, arrival, kept["value"], kept["offset"]),
                self._shape(
                    self.spec.label.engagement,
                    clicks,
                    known,
                    pa.array(self.impressions["label"][places].astype(np.int64)),
                    pa.array(self.impressions["engaged"][places]),
                ),
            ]
        )
        if places.size == 0:
            return resolved
        order = np.argsort(np.concatenate([arrival, known]), kind="stable")
        return resolved.take(pa.array(order))

    def _shape(
        self, event: str, rows: pa.Table, known: Int64s, value: _Column, offset: _Column
    ) -> pa.Table:
        columns = [pa.array(known), pa.array([event] * rows.num_rows, pa.string()), value, offset]
        columns += [rows[name] for name in self.spec.columns]
        return pa.table(columns, schema=self._resolved_schema)

    def _register(self, impressions: pa.Table) -> pa.Table:
        """Put first records on the shelf; return them."""
        offsets, arrival = as_us(impressions, "offset"), as_us(impressions, "arrival_at")
        event_at = as_us(impressions, "event_at")
        late = (arrival - event_at >= self.horizon_us).tolist()
        index = self.impressions.index
        fate = np.zeros(offsets.size, dtype=np.int8)
        for place, (name, offset) in enumerate(
            zip(as_strings(impressions, "impression_id"), offsets.tolist(), strict=True)
        ):
            if name in index:
                fate[place] = 1
            elif late[place]:
                fate[place] = 2
            else:
                index[name] = offset
        self.say(offsets[fate == 1], "duplicate_impression")
        self.say(offsets[fate == 2], "too_late")
        fresh = fate == 0
        kept = impressions if fresh.all() else impressions.filter(pa.array(fresh))
        arrival, event_at = arrival[fresh], event_at[fresh]
        vector = self._served.find(as_strings(kept, "impression_id"))
        served_at = self._served["served_at"][self._served.places(vector[vector >= 0])]
        expired = arrival[vector >= 0] >= served_at + self.horizon_us
        vector[np.flatnonzero(vector >= 0)[expired]] = -1
        defaults = np.zeros(vector.size, dtype=np.bool_)
        found = np.flatnonzero(vector >= 0)
        defaults[found] = self._served["defaults"][self._served.places(vector[found])]
        self.impressions.add(
            kept.select(self.impressions.schema.names).cast(self.impressions.schema),
            offsets[fresh],
            {
                "event_at": event_at,
                "arrival_at": arrival,
                "close_at": np.maximum(arrival, event_at) + self.horizon_us,
                "engaged": -1,
                "label": 0,
                "vector": vector,
                "stage": np.where(defaults, PASSED, OPEN),
            },
        )
        return kept

    def _gather(self, engagements: pa.Table, new_ids: list[str]) -> _Engagements:
        """New engagements with their impression, and early ones whose impression is new."""
        found = _Engagements()
        index, early = self.impressions.index, self.early
        if early:
            for name in new_ids:
                for offset in self._early_by_id.get(name, ()):
                    self._claim(found, offset, early[offset], index[name])
        for offset, row in zip(
            as_us(engagements, "offset").tolist(),
            map(
                Early,
                as_strings(engagements, "impression_id"),
                as_us(engagements, "event_at").tolist(),
                as_us(engagements, "arrival_at").tolist(),
                as_us(engagements, "value").tolist(),
            ),
            strict=True,
        ):
            impression = index.get(row.impression_id, -1)
            if impression >= 0:
                self._claim(found, offset, row, impression)
            else:
                self.hold(offset, row)
        return found

    @staticmethod
    def _claim(found: _Engagements, offset: int, row: Early, impression: int) -> None:
        found.offset.append(offset)
        found.event_at.append(row.event_at)
        found.arrival_at.append(row.arrival_at)
        found.value.append(row.value)
        found.impression.append(impression)

    def _attribute(self, found: _Engagements) -> tuple[Int64s, Int64s, Int64s]:
        """Give each impression its first valid engagement: (knowledge times, places, event times)
        of these engagements.
        """
        offset, event_at, arrival, value, impression = (
            np.asarray(column, dtype=np.int64)
            for column in (
                found.offset, found.event_at, found.arrival_at, found.value, found.impression
            )
        )  # fmt: skip
        order = np.argsort(offset, kind="stable")
        shelf = self.impressions
        offset, event_at, arrival, value = (
            column[order] for column in (offset, event_at, arrival, value)
        )
        places = shelf.places(impression[order])
        met = shelf["arrival_at"][places] < arrival + self.horizon_us  # else: waits for its fate
        for gone in offset[met].tolist():
            self.release(gone)
        lag = event_at - shelf["event_at"][places]
        inside = (lag >= 0) & (lag < self.spec.label.attribution_window)
        self.say(offset[met & ~inside], "too_late")
        valid = np.flatnonzero(met & inside)
        first = np.zeros(valid.size, dtype=np.bool_)
        first[np.unique(places[valid], return_index=True)[1]] = True
        first &= shelf["engaged"][places[valid]] < 0
        self.say(offset[valid[~first]], "duplicate_engagement")
        won = valid[first]
        shelf["engaged"][places[won]] = offset[won]
        explicit = self.spec.label.outcome == "explicit"
        shelf["label"][places[won]] = (value[won] != 0) if explicit else 1
        known = np.maximum(arrival[won], shelf["arrival_at"][places[won]])
        return known, places[won], event_at[won]

    def _hand_on(self, ids: list[str], known: Int64s, places: Int64s, clicked_at: Int64s) -> None:
        shelf = self.impressions
        impression = shelf["offset"][places]
        columns = (
            np.maximum(impression, shelf["engaged"][places]).tolist(), ids, impression.tolist(),
            shelf["event_at"][places].tolist(), clicked_at.tolist(), known.tolist(),
        )  # fmt: skip
        self._clicks += map(Click._make, zip(*columns, strict=True))

    def drain_clicks(self) -> list[Click]:
        """Clicks attributed since the last call, by offset; empty where nothing follows them."""
        clicks, self._clicks = self._clicks, []
        return sorted(clicks)

    def release(self, offset: int) -> None:
        """An early engagement no longer waits."""
        row = self.early.pop(offset, None)
        if row is not None:
            waiting = self._early_by_id[row.impression_id]
            waiting.remove(offset)
            if not waiting:
                del self._early_by_id[row.impression_id]

    def hold(self, offset: int, row: Early) -> None:
        """Keep an engagement until its impression comes."""
        self.early[offset] = row
        self._early_by_id.setdefault(row.impression_id, []).append(offset)

    def say(self, offsets: Int64s, fate: str) -> None:
        """Note what became of events."""
        if offsets.size:
            self._fates.append((offsets, fate))

    def drain_fates(self) -> pa.Table:
        """The fates noted since the last call, by offset (`FATE_SCHEMA`)."""
        fates, self._fates = self._fates, []
        if not fates:
            return FATE_SCHEMA.empty_table()
        offsets = np.concatenate([offsets for offsets, _ in fates])
        names = np.concatenate([np.full(o.size, fate, dtype=object) for o, fate in fates])
        order = np.argsort(offsets, kind="stable")
        return pa.table([pa.array(offsets[order]), pa.array(names[order])], schema=FATE_SCHEMA)

    def _check_names(self, events: pa.Table) -> None:
        unknown = set(events["event"].unique().to_pylist()) - {
            IMPRESSION,
            MARK,
            self.spec.label.engagement,
        }
        if unknown:
            raise InputError(
                f"event {sorted(unknown)[0]!r} is neither 'impression' nor the engagement "
                f"{self.spec.label.engagement!r} of line {self.spec.line!r}; drop it or rename it"
            )


def as_us(table: pa.Table, name: str) -> Int64s:
    """An int64 or timestamp[us] column as NumPy int64."""
    return np.asarray(table[name].cast(pa.int64()).to_numpy(), dtype=np.int64)


def as_strings(table: pa.Table, name: str) -> list[str]:
    """A text column without nulls as a list."""
    values: list[str] = table[name].to_numpy().tolist()
    return values
