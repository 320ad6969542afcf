"""A window of samples against the line's own recent past: figures, and limits for them. Pure.

The past sets its own limits. A figure of the window is held against the same figure of stretches
of the past that are as long as the window, so what always moves (coupons that come and go, users
who return) may move on, and what never moved may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from headrace import metrics
from headrace.declaration import LineSpec
from headrace.labels.revisions import newest

Floats = NDArray[np.float64]

LOST: Final = ("too_late", "unmatched")
"""Fates of engagements that found no impression in time: labels that were lost."""
SCORE: Final = "score"
DELAY: Final = "label delay"
FEWEST: Final = 4
"""Stretches of the past without which nothing is said."""
COMMON: Final = 20
BINS: Final = 10
DEVIATIONS: Final = 5.0
_SURELY: Final = 0.95
_MISRANKED: Final = "share of pairs that served scores surely rank the wrong way"
_MANY_POSITIVES: Final = 30
_SLACK_OF_WINDOWS: Final = 10.0
_SLACK_OF_DELAY: Final = 2.0


@dataclass(frozen=True)
class Figure:
    """One figure of a window and the largest value it may have; NaN: the rows do not tell it."""

    value: float
    limit: float


Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Vitals:
    """What came in while a window's samples were made: seconds, events, and what became of them.

    `fates`: events that ended in no sample, by fate; `refused`: malformed ones, never in the log.
    """

    seconds: float
    events: int
    engagements: int
    refused: int = 0
    fates: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost_share(self) -> float:
        """Engagements that found no impression in time, of all that came; NaN of none."""
        lost = sum(self.fates.get(name, 0) for name in LOST)
        return lost / self.engagements if self.engagements else float("nan")


class Bins:
    """Shares of a column's values: of numbers by the past's deciles, of ids by its commonest ones.

    Missing values (NaN, -1) are a bin of their own, so are values that the past does not know.
    """

    def __init__(self, column: NDArray[np.generic]) -> None:
        self._ids = np.issubdtype(column.dtype, np.integer)
        if self._ids:
            values, counts = np.unique(column, return_counts=True)
            self._edges = np.sort(values[np.argsort(-counts, kind="stable")[:COMMON]])
        else:
            known = column[~np.isnan(column)]
            levels = np.linspace(0, 1, BINS + 1)[1:-1]
            self._edges = np.unique(np.quantile(known, levels)) if known.size else known

    def counts(self, column: NDArray[np.generic]) -> NDArray[np.int64]:
        """How many values lie in each bin, (bins,)."""
        return np.bincount(self.places(column), minlength=self._edges.size + 2)

    def places(self, column: NDArray[np.generic]) -> NDArray[np.int64]:
        """The bin of each value, (n,)."""
        size = self._edges.size
        if self._ids:
            at = np.minimum(np.searchsorted(self._edges, column), size - 1)
            place = np.where(self._edges[at] == column, at, size)
        else:
            at = np.searchsorted(self._edges, column, side="right")
            place = np.where(np.isnan(column), size + 1, at)
        return place.astype(np.int64)


class Reference:
    """Recent clean rows of a line, in stream order, as later windows are compared with them."""

    def __init__(self, spec: LineSpec, samples: pa.Table) -> None:
        self._spec = spec
        self.rows = newest(samples) if samples.num_rows else samples
        self._columns = dict(columns(spec, self.rows))
        self._bins = {name: Bins(column) for name, column in self._columns.items()}

    def drift(self, window: pa.Table, floor: float) -> dict[str, Figure]:
        """The population stability index of each input, of score and label delay, with its limit.

        The limit is `floor`, or twice the largest index that a stretch of the past as long as the
        window has against the rest of it. Empty where the past holds fewer than `FEWEST` such
        stretches.
        """
        found: dict[str, Figure] = {}
        stretches = self.rows.num_rows // max(window.num_rows, 1)
        if stretches < FEWEST:
            return found
        for name, column in columns(self._spec, window):
            if not _enough(name, column) or not _enough(name, self._columns[name]):
                continue
            bins, past = self._bins[name], self._columns[name]
            whole = bins.counts(past)
            usual = max(
                metrics.psi_of_counts(whole - counts, counts)
                for counts in map(bins.counts, np.array_split(past, min(stretches, 12)))
            )
            limit = max(floor, 2 * usual)
            found[name] = Figure(metrics.psi_of_counts(whole, bins.counts(column)), limit)
        return found

    def told(self, window: pa.Table) -> dict[str, Figure]:
        """How much of the label each input tells by itself, with its limit.

        The limit is `gates.data.max_information`, or twice the most that it tells in a stretch of
        the past as long as the window: an input that suddenly tells more may hold the label.
        """
        stretches = min(self.rows.num_rows // max(window.num_rows, 1), 12)
        if stretches < FEWEST:
            return {}
        held, labels = dict(columns(self._spec, window)), window["label"].to_numpy()
        before = np.array_split(self.rows["label"].to_numpy(), stretches)
        found = {}
        for name in _inputs(self._spec):
            bins = self._bins[name]
            parts = zip(np.array_split(self._columns[name], stretches), before, strict=True)
            usual = max(information(bins.places(part), label) for part, label in parts)
            limit = max(self._spec.gates.data.max_information, 2 * usual)
            found[name] = Figure(information(bins.places(held[name]), labels), limit)
        return found

    def varied(self) -> list[str]:
        """Inputs that were not constant: a constant in a window is a stuck one, unless it is of
        the clock alone.
        """
        asked = [name for name in _inputs(self._spec) if name not in _of_the_clock(self._spec)]
        return [name for name in asked if _commonest(self._columns[name]) < 0.9]


def figures(
    spec: LineSpec, window: pa.Table, past: pa.Table | None = None, vitals: Vitals | None = None
) -> dict[str, Figure]:
    """All figures of a window that the data gate bounds, by what they are called in a reason.

    window, past: `sample_schema`, stream order; past: recent rows that were accepted.
    """
    rows = newest(window) if window.num_rows else window
    found: dict[str, Figure] = {}
    if past is not None and past.num_rows and rows.num_rows:
        reference = Reference(spec, past)
        drifted, slack = reference.drift(rows, spec.gates.data.max_drift), _slack(spec)
        for name, each in drifted.items():
            if name != SCORE:
                least = slack.get(name, 1.0) * spec.gates.data.max_drift
                found[f"drift of {name}"] = Figure(each.value, max(each.limit, least))
        told = reference.told(rows)
        found |= {f"share of the label that {name} tells": each for name, each in told.items()}
        held = dict(columns(spec, rows))
        if reference.rows.num_rows >= FEWEST * rows.num_rows:
            for name in reference.varied():
                found[f"share of the commonest {name}"] = Figure(_commonest(held[name]), 0.99)
    if vitals is not None:
        figure = Figure(vitals.lost_share, spec.gates.data.max_lost_labels)
        found["share of engagements without an impression in time"] = figure
    return found | dict(_misranked(spec, rows)) | dict(_key_rates(spec, rows, past))


def _slack(spec: LineSpec) -> dict[str, float]:
    """How much more than what an application sends others may move before a gate stops the line:
    what windows count moves with the traffic, and how late labels come with its pace.
    """
    made = {feature.name for feature in spec.windows}
    for feature in spec.request_features:  # each may use those above it
        if made.intersection(feature.inputs):
            made.add(feature.name)
    return {**dict.fromkeys(made, _SLACK_OF_WINDOWS), DELAY: _SLACK_OF_DELAY}


def _of_the_clock(spec: LineSpec) -> set[str]:
    """Features that read nothing but the time: an hour has one hour, a day one weekday."""
    found: set[str] = set()
    for feature in spec.request_features:  # each may use those above it
        if found.issuperset(feature.inputs):  # an hour or a weekday has none
            found.add(feature.name)
    return found


def symptoms(now: Vitals, before: Vitals, expected: tuple[float, float] = (0.25, 4.0)) -> list[str]:
    """What a person must know of a stretch of time although its rows may be sound.

    Volumes are events a second against those of `before`, within `expected` times of them, as far
    as Poisson counts of this size can tell.
    """
    told = []
    for what in ("events", "engagements"):
        had, has = getattr(before, what), getattr(now, what)
        if not before.seconds or not had or not now.seconds:
            continue
        usual = had / before.seconds * now.seconds
        spread = DEVIATIONS * np.sqrt(usual)
        if has < expected[0] * usual - (0 if usual > 25 else spread) or has > expected[1] * (
            usual + spread
        ):
            told.append(
                f"volume: {has} {what} in {now.seconds:.0f} s, "
                f"{usual:.0f} were to be expected from the time before"
            )
    share = {name: count / max(now.events, 1) for name, count in now.fates.items()}
    doubled = share.get("duplicate_impression", 0) + share.get("duplicate_engagement", 0)
    if doubled > 0.2:
        told.append(f"duplicates: {doubled:.0%} of {now.events} events came twice")
    refused = now.refused / max(now.refused + now.events, 1)
    if refused > 0.1:
        told.append(f"malformed: {now.refused} events were refused, {refused:.0%} of all")
    return told


def _inputs(spec: LineSpec) -> tuple[str, ...]:
    return (*spec.model.categorical, *spec.model.numeric)


def columns(spec: LineSpec, rows: pa.Table) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """What is compared: the model's inputs, the scores that were served, how long labels took."""
    for name in _inputs(spec):
        yield name, rows[name].to_numpy()
    scores = rows["score"].to_numpy()
    yield SCORE, scores[~np.isnan(scores)]  # bootstrapped rows were never scored
    clicked = rows.filter(pc.greater(rows["label"], 0))
    delay = pc.subtract(
        clicked["emitted_at"].cast(pa.int64()), clicked["event_at"].cast(pa.int64())
    )
    yield DELAY, delay.to_numpy().astype(np.float64) / 1e6


def _enough(name: str, column: NDArray[np.generic]) -> bool:
    return name not in (DELAY, SCORE) or column.size >= _MANY_POSITIVES


def _commonest(column: NDArray[np.generic]) -> float:
    """Share of the commonest value."""
    if not column.size:
        return float("nan")
    return float(np.unique(column, return_counts=True)[1].max()) / column.size


def _misranked(spec: LineSpec, window: pa.Table) -> Iterator[tuple[str, Figure]]:
    """Where the line declares `gates.data.max_misranked`: 1 - AUC of what was served, its low end.

    Scores that rank worse than chance say that the labels are the wrong way round, whatever their
    rate; no weather does that.
    """
    limit = spec.gates.data.max_misranked
    if limit == 1:
        return
    scored = window.filter(pc.is_finite(window["score"]))  # bootstrapped rows never were
    labels, scores = scored["label"].to_numpy(), scored["score"].to_numpy()
    _, _, high = metrics.auc_difference(labels, scores, np.zeros(scores.size), _SURELY)
    yield _MISRANKED, Figure(0.5 - high, limit)


def contradiction(reasons: Iterable[str]) -> str | None:
    """The reason, if it is among them, that the labels contradict the scores that were served.

    What tells labels wrongly spoils the windows over them too, and by the next one the scores
    agree with it. So a line that meets it is frozen until somebody has looked.
    """
    return next((reason for reason in reasons if _MISRANKED in reason), None)


def _key_rates(
    spec: LineSpec, window: pa.Table, past: pa.Table | None
) -> Iterator[tuple[str, Figure]]:
    """For each key declared in `gates.data.key_label_rate`: the highest rate that one id surely
    has, over past and window; only ids that the window holds are told.
    """
    declared = spec.gates.data.key_label_rate
    if not declared or not window.num_rows:
        return
    together = window if past is None else pa.concat_tables([newest(past), window])
    labels = together["label"].to_numpy().astype(np.float64)
    for name, limit in declared.items():
        ids, inverse = np.unique(together[name].to_numpy(), return_inverse=True)
        shown = np.bincount(inverse).astype(np.float64)
        surely = low_end(np.bincount(inverse, labels), shown)
        present = np.isin(ids, window[name].to_numpy()) & (ids != -1)
        if present.any():
            yield (
                f"label rate that one {name} surely has",
                Figure(float(surely[present].max()), limit),
            )


def information(bins: NDArray[np.int64], labels: NDArray[np.integer[Any]]) -> float:
    """Mutual information of bin and label over the entropy of the label, 0 to 1 (Theil's U);
    NaN of one class only.
    """
    rate = labels.mean() if labels.size else 0.0
    if not 0 < rate < 1:
        return float("nan")
    rows = np.bincount(bins).astype(np.float64)
    held = rows > 0
    rates = np.bincount(bins, labels)[held] / rows[held]
    left = float((_entropy(rates) * rows[held]).sum() / rows.sum())
    return 1.0 - left / float(_entropy(np.array([rate]))[0])


def _entropy(rates: Floats) -> Floats:
    """Of a label with these rates, in nats."""
    p = np.clip(rates, 1e-12, 1 - 1e-12)
    entropy: Floats = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return entropy


def low_end(positives: ArrayLike, shown: ArrayLike, z: float = 4.0) -> Floats:
    """Lower end of Wilson's interval (1927) of rates at `z` standard errors, (n,)."""
    n = np.asarray(shown, dtype=np.float64)
    rate = np.asarray(positives, dtype=np.float64) / n
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low: Floats = (rate + z * z / (2 * n) - half) / (1 + z * z / n)
    return low
