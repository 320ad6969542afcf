"""What a reader makes of sample revisions: the newest label, a settled label, fewer negatives.

Pure. Sample rows are facts and stay as they are; everything here gives a new table.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.hashes import hash64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def newest(samples: pa.Table) -> pa.Table:
    """The last row of each impression, where it stands, with the plain weights of its label:
    (1, 0) or (0, 1); and of its conversion, where samples have one.
    """
    offsets = samples["impression_offset"].to_numpy()
    _, last = np.unique(offsets[::-1], return_index=True)
    return _plain(samples.take(pa.array(np.sort(offsets.size - 1 - last))))


def once(samples: pa.Table, until: pa.Table) -> pa.Table:
    """Each impression first sampled in `samples`, at its newest revision in `samples` or `until`.

    `until` are later rows of the same stream. Order is that of the first samples; weights are
    plain, as `newest` gives them.
    """
    first = samples["impression_offset"].filter(pc.equal(samples["revision"], 0)).to_numpy()
    rows = newest(pa.concat_tables([samples, until]).combine_chunks())
    offsets = rows["impression_offset"].to_numpy()
    order = np.argsort(offsets, kind="stable")
    return rows.take(pa.array(order[np.searchsorted(offsets, first, sorter=order)]))


class Corrected:
    """Which rows of a long stream are the newest revision of their impression, told by one look
    at the offsets and revisions of all rows, of which only corrections are remembered.

    A pair of impression and revision comes once, and revisions rise along the stream.
    """

    def __init__(self) -> None:
        self._found = [np.empty((2, 0), np.int64)]

    def see(self, samples: pa.Table) -> None:
        """Take note of a part of the stream: `impression_offset`, `revision`."""
        revisions = samples["revision"].to_numpy().astype(np.int64)
        later = revisions > 0
        offsets = samples["impression_offset"].to_numpy()
        self._found.append(np.stack([offsets[later], revisions[later]]))

    def is_newest(self, samples: pa.Table) -> NDArray[np.bool_]:
        """Which of these rows are the newest of all that was seen, as bool (n,)."""
        self._settle()
        offsets, newest = self._found[0]
        asked = samples["impression_offset"].to_numpy()
        revision = samples["revision"].to_numpy()
        if not offsets.size:
            return np.ones(asked.size, np.bool_)
        at = np.minimum(np.searchsorted(offsets, asked), offsets.size - 1)
        return np.asarray(revision >= np.where(offsets[at] == asked, newest[at], 0))

    def newest(self, samples: pa.Table) -> pa.Table:
        """What `newest` of the whole stream would give of these rows."""
        return _plain(samples.filter(pa.array(self.is_newest(samples))))

    def _settle(self) -> None:
        if len(self._found) == 1:
            return
        offsets, revisions = np.concatenate(self._found, axis=1)
        order = np.lexsort((revisions, offsets))
        offsets, revisions = offsets[order], revisions[order]
        last = np.append(offsets[1:] != offsets[:-1], True)[: offsets.size]
        self._found = [np.stack([offsets[last], revisions[last]])]


def unsettled(spec: LineSpec, samples: pa.Table) -> NDArray[np.bool_]:
    """Rows of impressions whose label nobody should judge by yet, as bool (n,).

    Where every impression is a negative first (`delayed_feedback: fnw`), silence counts only
    `provisional_after` after `served_at`; until then neither row of an impression tells the label
    rate. Now is the newest `emitted_at`. Other policies emit no sooner: nothing is unsettled.
    """
    if spec.label.delayed_feedback != "fnw" or not samples.num_rows:
        return np.zeros(samples.num_rows, dtype=np.bool_)
    assert spec.label.provisional_after is not None
    served, emitted = (
        samples[name].cast(pa.int64()).to_numpy() for name in ("served_at", "emitted_at")
    )
    young: NDArray[np.bool_] = served + spec.label.provisional_after > emitted.max()
    return young


def unaccompanied(spec: LineSpec, samples: pa.Table) -> NDArray[np.bool_]:
    """Rows of the first `provisional_after` of traffic, at its beginning or after a pause as long,
    as bool (n,): clicks have come by then, and no silence counts as a negative yet.
    """
    patience_us = spec.label.provisional_after
    if spec.label.delayed_feedback == "fnw" or patience_us is None or not samples.num_rows:
        return np.zeros(samples.num_rows, dtype=np.bool_)
    served, emitted = (
        samples[name].cast(pa.int64()).to_numpy() for name in ("served_at", "emitted_at")
    )
    moments = np.unique(served)
    begins = moments[np.diff(moments, prepend=moments[0] - patience_us - 1) > patience_us]
    place = np.searchsorted(begins, emitted, "right") - 1  # the newest one before
    early: NDArray[np.bool_] = emitted - begins[np.maximum(place, 0)] < patience_us
    return early


def conversions_settled(spec: LineSpec, samples: pa.Table) -> NDArray[np.bool_]:
    """Rows old enough to judge by whether they converted, as bool (n,); all where none can.

    Served `label.conversion.provisional_after` before the newest `emitted_at`, whether their
    conversion has come or not: those that come soon say nothing of those that do not.
    """
    if spec.label.conversion is None or not samples.num_rows:
        return np.ones(samples.num_rows, dtype=np.bool_)
    served, emitted = (
        samples[name].cast(pa.int64()).to_numpy() for name in ("served_at", "emitted_at")
    )
    old: NDArray[np.bool_] = served + spec.label.conversion.patience_us <= emitted.max()
    return old


def thin_negatives(spec: LineSpec, samples: pa.Table) -> pa.Table:
    """Samples to learn: of the negatives `label.negative_rate`, each at weight 1/rate.

    Whether a negative is kept depends on its impression's id and the line's seed alone, so a
    correction knows what became of its negative without looking: it takes 1/rate back, or
    nothing if that was never learned. Every sum of weights keeps its expectation, so log odds
    need no repair afterwards. Rate 1 gives the same table.

    A negative stands for 1/rate impressions without a conversion too. Once clicked, it stands for
    itself again in both tasks: its correction makes up the difference, so that a conversion, which
    comes alone, takes back 1.
    """
    rate = spec.label.negative_rate
    if rate == 1:
        return samples
    kept = _drawn(hash64(samples["impression_id"]), spec.seed) < np.uint64(int(rate * 2**64))
    positive = samples["positive_weight"].to_numpy()
    negative = samples["negative_weight"].to_numpy()
    share = np.where(kept, 1 / np.float32(rate), np.float32(0))  # what a negative stands for
    thinned = weighted(samples, positive, negative * share)
    if "conversion" in samples.column_names:
        converted, not_converted = (
            samples[f"conversion_{side}_weight"].to_numpy() for side in ("positive", "negative")
        )
        without = np.where(negative > 0, not_converted * share, not_converted)
        without = np.where(negative < 0, not_converted + 1 - share, without)
        thinned = weighted(thinned, converted, without, "conversion_")
    return thinned.filter(pa.array(kept | (negative <= 0)))


def unlearned(samples: pa.Table, skipped: pa.Table) -> pa.Table:
    """The samples as a model learns them that has not learned the `skipped` rows (a quarantine's).

    A row corrects those of its impression before it. Where all of them were skipped there is
    nothing to take back: its negative weights become what the label says.
    """
    offsets, times = np.unique(skipped["impression_offset"].to_numpy(), return_counts=True)
    own = samples["impression_offset"].to_numpy()
    at = np.searchsorted(offsets, own)
    seen = np.append(offsets, -1)[at] == own
    revision = samples["revision"].to_numpy()
    orphan = seen & (revision > 0) & (np.append(times, 0)[at] == revision)
    positive, negative = (samples[f"{side}_weight"].to_numpy() for side in ("positive", "negative"))
    samples = weighted(samples, positive, np.where(orphan, np.maximum(negative, 0), negative))
    if "conversion" not in samples.column_names:
        return samples
    converted, without = (
        samples[f"conversion_{side}_weight"].to_numpy() for side in ("positive", "negative")
    )
    return weighted(samples, converted, without + orphan, "conversion_")


def _drawn(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Uniform 64-bit numbers: splitmix64 of the id in the stream of the seed."""
    stream = _splitmix64(np.array([seed % 2**64], np.uint64))
    return _splitmix64(ids.view(np.uint64) ^ stream)


def _splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = state + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _plain(samples: pa.Table) -> pa.Table:
    """With the weights that the labels alone would give."""
    label = samples["label"].to_numpy().astype(np.float32)
    plain = weighted(samples, label, 1 - label)
    if "conversion" not in samples.column_names:
        return plain
    conversion = samples["conversion"].to_numpy().astype(np.float32)
    return weighted(plain, conversion, 1 - conversion, "conversion_")


def weighted(
    samples: pa.Table,
    positive: NDArray[np.float32],
    negative: NDArray[np.float32],
    task: str = "",
) -> pa.Table:
    """The samples with these weights (n,) of a task: "" the click's, or `conversion_`."""
    for side, weight in (("positive", positive), ("negative", negative)):
        name = f"{task}{side}_weight"
        place = samples.schema.get_field_index(name)
        values = pa.array(weight, pa.float32())
        samples = samples.set_column(place, samples.schema.field(place), values)
    return samples
