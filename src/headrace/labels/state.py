"""Impressions, engagements and served vectors become labelled samples.

Pure. `LabelState` reads the event log once, in order: `resolve` joins the events of a tick to
their impressions, `emit` joins the vectors that were served and says what became of every
event. All deadlines count from arrival stamps, never from ticks, so any split of the log into
ticks ends in the same labels:

- an impression is open while `arrival < max(arrival_at, event_at) + horizon`; meanwhile
  a second record of its id is a duplicate, and engagements may still find it;
- an engagement (or a served vector) waits for its impression for one horizon;
- an impression that arrives a whole horizon after its own `event_at` is `too_late`: its
  first record might be forgotten by then, so it could not be told from a duplicate.

An impression whose vector holds defaults in place of features ends in no sample: with its
engagement it closes as `defaults`.

Attribution is by `event_at`: `[impression, impression + attribution_window)`.

Where `label.conversion` is declared, `conversions` joins conversions to these clicks, and a
sample says both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import sample_schema
from headrace.labels import checkpoint
from headrace.labels.attribution import (
    DONE,
    FATE_SCHEMA,
    MARK,
    NEGATIVE,
    OPEN,
    PASSED,
    Attribution,
    as_strings,
    as_us,
)
from headrace.labels.conversions import CONVERSION_FATES, Conversions, Waiting, conversion_facts
from headrace.labels.shelf import Int64s
from headrace.labels.vectors import ReadServed, Vectors

__all__ = ["FATES", "FATE_SCHEMA", "MARK", "Emitted", "LabelState", "ReadServed", "fates_of"]

GRACE_US: Final = 600_000_000
FATES: Final = (
    "duplicate_impression",
    "duplicate_engagement",
    "too_late",
    "unmatched",
    "unserved",
    "defaults",
    "unlabelled",
    MARK,
)


def fates_of(spec: LineSpec) -> tuple[str, ...]:
    """What may become of an event of a line that is in no sample."""
    return FATES if not spec.converts else (*FATES, *CONVERSION_FATES)


@dataclass(frozen=True)
class Emitted:
    """What one tick adds: samples (`sample_schema`) and fates (offset int64, fate string)."""

    samples: pa.Table
    fates: pa.Table


def settled_after_us(spec: LineSpec) -> int:
    """How long after an impression is known nothing can correct its samples any more."""
    after_us = spec.label.attribution_window + GRACE_US
    if spec.label.conversion is not None:
        after_us += spec.label.conversion.attribution_window + GRACE_US
    return after_us


class LabelState:
    """What the label join remembers: open impressions, early engagements, unclaimed vectors.

    Call `resolve`, then `emit`, once for each tick, in log order. `horizon_us` defaults to
    the attribution window and 10 minutes.
    """

    def __init__(self, spec: LineSpec, horizon_us: int | None = None) -> None:
        self.spec = spec
        self.horizon_us = horizon_us or spec.label.attribution_window + GRACE_US
        if self.horizon_us <= spec.label.attribution_window:
            raise InputError(
                f"horizon {self.horizon_us} us does not outlast the attribution window "
                f"{spec.label.attribution_window} us; make it longer"
            )
        self._vectors = Vectors(spec, self.horizon_us)
        self._join = Attribution(spec, self.horizon_us, self._vectors.shelf)
        self._impressions = self._join.impressions
        self._conversions: Conversions | None = None
        if spec.label.conversion is not None:
            self._conversions = Conversions(
                spec.label.conversion,
                self.horizon_us,
                grace_us=self.horizon_us - spec.label.attribution_window,
            )
        self._at_us = -1

    def resolve(self, events: pa.Table) -> pa.Table:
        """Join new events (event schema + `offset` int64, in log order) to their impressions.

        Returns `knowledge_at` (int64 us), `event`, `value`, `offset` (int64, of that record) and
        the declared columns: first records of impressions and attributed engagements by the
        time both were known.
        Conversions are no window's events: they are joined, and wait for `emit`.
        Raises `IntegrityError` when arrival stamps fall, `InputError` for an unknown event.
        """
        if self._conversions is None:
            return self._join.resolve(events)
        is_conversion = pc.equal(events["event"], self._conversions.spec.engagement)
        resolved = self._join.resolve(events.filter(pc.invert(is_conversion)))
        came = events.filter(is_conversion)
        columns = (as_strings(came, "impression_id"), as_us(came, "event_at").tolist())
        rows = map(Waiting, *columns, as_us(came, "arrival_at").tolist())
        offsets = as_us(came, "offset").tolist()
        self._conversions.resolve(self._join.drain_clicks(), list(zip(offsets, rows, strict=True)))
        return resolved

    def emit(self, served: pa.Table, at_us: int) -> Emitted:
        """Join new served rows (served schema, in log order) and emit what is due at `at_us`.

        `at_us` lies after every arrival resolved so far. Samples come in impression order.
        """
        self._serve(served)
        shelf = self._impressions
        engaged, stage = shelf["engaged"] >= 0, shelf["stage"]
        ready = shelf["alive"] & (shelf["vector"] >= 0) & (stage < DONE)
        settled = np.flatnonzero(ready & engaged)
        if self.spec.label.outcome == "explicit":
            silent = np.empty(0, dtype=np.int64)
        else:
            waited = shelf["arrival_at"] + self.spec.label.patience_us <= at_us
            silent = np.flatnonzero(ready & ~engaged & (stage == OPEN) & waited)
        places = [settled, silent]
        if self.spec.label.delayed_feedback == "fnw":  # its weights want each negative first
            places.append(settled[stage[settled] == OPEN])
        samples = self._samples(np.sort(np.concatenate(places)), at_us)
        stage[settled] = DONE
        stage[silent] = NEGATIVE
        self._close(at_us)
        if self._conversions is not None:
            samples = self._with_late(samples, self._conversions, at_us)
        self._expire(at_us)
        self._at_us = at_us
        return Emitted(samples, self._join.drain_fates())

    def _with_late(self, samples: pa.Table, join: Conversions, at_us: int) -> pa.Table:
        """The samples and a row for each conversion whose click has one; fates of the others."""
        late = join.drain_late()
        join.expire(at_us)
        for offset, fate in join.drain_fates():
            self._join.say(np.array([offset], dtype=np.int64), fate)
        if not late.impression.size:
            return samples
        facts = late.facts() | {"emitted_at": np.full(late.impression.size, at_us)}
        both = pa.concat_tables([samples, self._rows(late.vector, facts)]).combine_chunks()
        return both.take(pc.sort_indices(both, [("impression_offset", "ascending")]))

    def due(self, at_us: int) -> bool:
        """Whether `emit` at this time would say something though no new record came."""
        shelf = self._impressions
        silent = (shelf["engaged"] < 0) & (shelf["vector"] >= 0) & (shelf["stage"] == OPEN)
        waited = shelf["arrival_at"] + self.spec.label.patience_us <= at_us
        if self.spec.label.outcome == "explicit":
            waited[:] = False
        closed = (shelf["close_at"] <= at_us) & np.isin(shelf["stage"], (OPEN, PASSED))
        early = next(iter(self._join.early.values()), None)
        return (
            bool(np.any(shelf["alive"] & ((silent & waited) | closed)))
            or (early is not None and early.arrival_at + self.horizon_us <= at_us)
            or (self._conversions is not None and self._conversions.due(at_us))
        )

    def _serve(self, served: pa.Table) -> None:
        """Shelve new vectors (the first of an id wins) and hand them to open impressions."""
        ids, vectors, served_at = self._vectors.add(served, self._at_us)
        self._hand_over(self._impressions.find(ids), vectors, served_at)
        for place, name in enumerate(ids) if self._join.superseded else ():
            for impression in self._join.superseded.get(name, ()):
                row = slice(place, place + 1)
                self._hand_over(np.array([impression]), vectors[row], served_at[row])

    def _hand_over(self, impressions: Int64s, vectors: Int64s, served_at: Int64s) -> None:
        shelf = self._impressions
        there = np.flatnonzero(impressions >= 0)
        places = shelf.places(impressions[there])
        fits = (
            (shelf["vector"][places] < 0)
            & (shelf["arrival_at"][places] < served_at[there] + self.horizon_us)
            & (shelf["close_at"][places] > served_at[there])
        )
        taken, first = np.unique(places[fits], return_index=True)
        given = vectors[there][fits][first]
        shelf["vector"][taken] = given
        shelf["stage"][taken[self._vectors.hold_defaults(given)]] = PASSED

    def _samples(self, places: Int64s, at_us: int) -> pa.Table:
        """Rows of these positions; one that stands twice is a negative, then its correction."""
        shelf = self._impressions
        before, after = np.zeros((2, places.size), dtype=np.bool_)
        before[:-1] = after[1:] = places[1:] == places[:-1]
        label = np.where(before, 0, shelf["label"][places])
        corrects = (shelf["stage"][places] == NEGATIVE) | after
        added: dict[str, NDArray[Any]] = {
            "event_at": shelf["event_at"][places],
            "revision": corrects.astype(np.int32),
            "label": label,
            "positive_weight": label.astype(np.float32),
            "negative_weight": np.where(corrects, -1, 1 - label).astype(np.float32),
            "impression_offset": shelf["offset"][places],
            "engagement_offset": np.where(before, -1, shelf["engaged"][places]),
            "emitted_at": np.full(places.size, at_us, dtype=np.int64),
        }
        if self._conversions is not None:
            clicked = np.flatnonzero(label)
            converted = np.full(places.size, -1, dtype=np.int64)
            converted[clicked] = self._conversions.tell(
                shelf["offset"][places[clicked]],
                shelf["vector"][places[clicked]],
                corrects[clicked].astype(np.int64),
            )
            added |= conversion_facts(converted, corrects)
        return self._rows(shelf["vector"][places], added)

    def _rows(self, vectors: Int64s, added: dict[str, NDArray[Any]]) -> pa.Table:
        """Served rows by their offsets, with the columns that samples add."""
        schema = sample_schema(self.spec)
        rows = self._vectors.rows(vectors)
        columns = [rows[name] for name in rows.schema.names]
        columns += [
            pa.array(added[field.name]).cast(field.type) for field in schema if field.name in added
        ]
        return pa.table(columns, schema=schema)

    def _close(self, at_us: int) -> None:
        """Say what became of impressions that closed with nothing emitted; forget the closed."""
        shelf = self._impressions
        closed = np.flatnonzero(shelf["alive"] & (shelf["close_at"] <= at_us))
        silent = closed[shelf["stage"][closed] == OPEN]
        unserved = silent[shelf["vector"][silent] < 0]
        passed = closed[shelf["stage"][closed] == PASSED]
        for places, fate in ((unserved, "unserved"), (passed, "defaults")):
            self._join.say(shelf["offset"][places], fate)
            engaged = shelf["engaged"][places]
            self._join.say(engaged[engaged >= 0], fate)
            if self._conversions is not None:
                self._conversions.give_up(shelf["offset"][places])
        self._join.say(shelf["offset"][silent[shelf["vector"][silent] >= 0]], "unlabelled")
        shelf.drop(closed)
        self._join.superseded.clear()

    def _expire(self, at_us: int) -> None:
        gone = []
        for offset, row in self._join.early.items():  # in order of arrival
            if row.arrival_at + self.horizon_us > at_us:
                break
            gone.append(offset)
        for offset in gone:
            self._join.release(offset)
        self._join.say(np.asarray(gone, dtype=np.int64), "unmatched")
        if self._vectors.mostly_expired(at_us):
            self._vectors.keep(at_us, self._claimed())

    def _claimed(self) -> Int64s:
        """Vectors whose samples are still to come, or may be repeated by a correction."""
        shelf = self._impressions
        claimed: Int64s = shelf["vector"][shelf["alive"] & (shelf["stage"] < DONE)]
        if self._conversions is not None:
            claimed = np.concatenate([claimed, self._conversions.claimed()])
        return claimed

    def pending_offsets(self) -> Int64s:
        """Event offsets that are neither in a sample nor have a fate yet, sorted."""
        shelf = self._impressions
        alive = shelf["alive"]
        engaged = shelf["engaged"]
        waiting = alive & (shelf["stage"] != DONE) & (engaged >= 0)
        found = [
            shelf["offset"][alive & np.isin(shelf["stage"], (OPEN, PASSED))],
            engaged[waiting],
            np.asarray(list(self._join.early), dtype=np.int64),
        ]
        if self._conversions is not None:
            found.append(self._conversions.pending_offsets())
        return np.sort(np.concatenate(found))

    def checkpoint(self) -> dict[str, pa.Table]:
        """The state after `emit` as tables; equal states give equal tables.

        Served vectors are not copied: `served` names their offsets in the served log.
        """
        wanted = self._vectors.wanted(self._at_us, self._claimed())
        clocks = [self.horizon_us, self._vectors.head, self._join.last_arrival_us, self._at_us]
        after = {} if self._conversions is None else self._conversions.checkpoint()
        return {
            **checkpoint.tables_of(self._join),
            "served": pa.table({"offset": pa.array(wanted)}),
            "clocks": pa.table({"value": pa.array(clocks, pa.int64())}),
            **after,
        }

    @classmethod
    def restore(cls, spec: LineSpec, tables: dict[str, pa.Table], served: ReadServed) -> Self:
        """The state of a checkpoint; vectors come from the served log again."""
        horizon_us, served_head, last_arrival_us, at_us = tables["clocks"]["value"].to_pylist()
        state = cls(spec, horizon_us)
        state._vectors.head, state._join.last_arrival_us = served_head, last_arrival_us
        state._at_us = at_us
        checkpoint.restore(state._join, tables)
        if state._conversions is not None:
            state._conversions.restore(tables)
        state._vectors.read_again(as_us(tables["served"], "offset"), served)
        return state
