"""What the data gate demands of a window of samples: rules made from a line's declaration.

One list of rules, two who ask them. `quality` hands them to Great Expectations; `broken` asks
them with NumPy, in a few milliseconds, for those who have a window every second. Both give the
same sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import metrics
from headrace.baseline import Figures
from headrace.declaration import LineSpec
from headrace.events import task_scores
from headrace.labels.revisions import unaccompanied, unsettled

if TYPE_CHECKING:
    import pandas as pd

LARGEST: Final = float(np.finfo(np.float64).max)
FIRST_LABEL: Final = "label_of_impression"
SAMPLE_KEY: Final = "sample_key"
ODD_STRETCH: Final = "label_rate_of_odd_stretch"
UNCLICKED: Final = "conversion_less_click"
EXAMPLES: Final = 3

Kind = Literal["rows", "present", "one_of", "unique", "mean", "between", "figure"]


@dataclass(frozen=True)
class Rule:
    """One demand on a column (`rows`: on the number of rows); bounds are closed, None is open.

    A missing value (None, NaN) is passed over by every kind but `present`. A `figure` is one value
    of the whole window (`baseline.figures`), which stands in the column's first row.
    """

    kind: Kind
    column: str = ""
    low: float | None = None
    high: float | None = None
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What broke a rule: the value of the window, or how many values of which some are shown."""

    value: float | None = None
    count: int = 0
    examples: list[Any] = field(default_factory=list)


def frame(
    spec: LineSpec,
    samples: pa.Table,
    settled: NDArray[np.bool_] | None = None,
    figures: Figures | None = None,
) -> pd.DataFrame:
    """One row for each sample: keys, label, score, model inputs, indicators of what is missing.

    settled: (rows,) the rows whose impressions may tell the label rate; default is all but those
    that `labels.revisions.unsettled` leaves out, and of a stretch those that are `unaccompanied`.
    """
    known_now = ~unsettled(spec, samples) if settled is None else settled
    inputs = (*spec.model.categorical, *spec.model.numeric)
    names = ("impression_id", "request_id", "revision", "label", "score", *inputs)
    if spec.converts:
        names += ("conversion", *task_scores(spec))
    made: pd.DataFrame = samples.select(list(dict.fromkeys(names))).to_pandas()
    made[SAMPLE_KEY] = made["impression_id"] + "#" + made["revision"].astype(str)
    newest = made.groupby("impression_id", sort=False)["label"].transform("last")
    known = (made["revision"] == 0) & known_now
    made[FIRST_LABEL] = newest.where(known).astype("float64")
    if spec.converts:
        made[UNCLICKED] = made["conversion"] - made["label"]
    even = made[FIRST_LABEL]
    if settled is None:
        even = even.mask(unaccompanied(spec, samples))
    made[ODD_STRETCH] = _odd_stretches(spec, even)
    for name in spec.model.categorical:
        made[f"{name}__missing"] = (made[name] == -1).astype("float64")
    for name in spec.model.numeric:
        made[f"{name}__missing"] = made[name].isna().astype("float64")
    first = np.arange(len(made)) == 0
    told = {name: np.where(first, each.value, np.nan) for name, each in (figures or {}).items()}
    return made.join(type(made)(told, index=made.index))  # at once: pandas minds one by one


def declared(spec: LineSpec, figures: Figures | None = None) -> list[Rule]:
    """The rules of a line, in the order in which they are told, and those of a window's figures."""
    gate = spec.gates.data
    low, high = gate.label_rate
    rules = [
        Rule("rows", low=gate.min_rows),
        *(Rule("present", name) for name in ("impression_id", "request_id", "label")),
        Rule("one_of", "label", values=(0, 1)),
        Rule("one_of", "revision", values=(0, 1, 2) if spec.converts else (0, 1)),
        Rule("unique", SAMPLE_KEY),
        Rule("mean", FIRST_LABEL, low, high),
        Rule("between", ODD_STRETCH, low, high),
        Rule("between", "score", 0.0, 1.0),  # bootstrapped rows were never scored: NaN
    ]
    if spec.converts:
        rules += [
            Rule("one_of", "conversion", values=(0, 1)),
            Rule("between", UNCLICKED, high=0),  # no conversion without a click
            *(Rule("between", name, 0.0, 1.0) for name in task_scores(spec)),
        ]
    rules += [Rule("between", name, low=-1) for name in spec.model.categorical]
    rules += [Rule("between", name, -LARGEST, LARGEST) for name in spec.model.numeric]
    rules += [
        Rule("mean", f"{name}__missing", 0.0, gate.max_missing_share)
        for name in (*spec.model.categorical, *spec.model.numeric)
    ]
    for own in gate.expectations:
        rules = [rule for rule in rules if (rule.kind, rule.column) != (own.kind, own.column)]
        if not own.drop:
            rules.append(Rule(own.kind, own.column, own.low, own.high, own.values))
    return rules + [
        Rule("figure", name, high=figure.limit) for name, figure in (figures or {}).items()
    ]


def broken(window: pd.DataFrame, rules: Sequence[Rule]) -> list[str]:
    """A sentence for each rule that a window (`frame`) breaks; none for a sound window."""
    found = ((rule, _asked(window, rule)) for rule in rules)
    return [sentence(rule, seen) for rule, seen in found if seen is not None]


def sentence(rule: Rule, seen: Seen) -> str:
    """A broken rule in words: what was seen, and what it must be."""
    subject = name_of(rule)
    if seen.value is not None:
        shown = f"{seen.value:.4g}" if isinstance(seen.value, float) else f"{seen.value}"
        return f"{subject} is {shown}, must be {_bounds(rule)}"
    demand = {
        "unique": "unique",
        "present": "present",
        "one_of": f"one of {list(rule.values)}",
    }.get(rule.kind) or _bounds(rule)
    listed = ", ".join(map(str, seen.examples[:EXAMPLES]))
    return (
        f"{subject}: {seen.count} values{f' (such as {listed})' if listed else ''} are not {demand}"
    )


_NAMES: Final = {
    FIRST_LABEL: "label rate over impressions",
    ODD_STRETCH: "label rate of a stretch of impressions",
    SAMPLE_KEY: "(impression_id, revision)",
    UNCLICKED: "conversion less click",
}


def name_of(rule: Rule) -> str:
    """What a rule is about, in words."""
    if rule.kind == "rows":
        return "row count"
    if rule.column.endswith("__missing"):
        return f"missing share of {rule.column.removesuffix('__missing')}"
    return _NAMES.get(rule.column, rule.column)


def _bounds(rule: Rule) -> str:
    if rule.high == LARGEST:
        return "finite"
    if rule.low is None:
        return f"at most {rule.high:.4g}" if rule.kind == "figure" else f"at most {rule.high}"
    return f"at least {rule.low}" if rule.high is None else f"between {rule.low} and {rule.high}"


def _asked(window: pd.DataFrame, rule: Rule) -> Seen | None:
    """What breaks the rule, None where nothing does."""
    if rule.kind == "rows":
        return None if _inside(len(window), rule) else Seen(value=len(window))
    column = window[rule.column]
    if rule.kind == "mean":
        value = float(column.mean())
        return None if _inside(value, rule) else Seen(value=value)
    wrong = _wrong(column, rule)
    if not wrong.any():
        return None
    if rule.kind == "figure":
        return Seen(value=float(column[wrong].iloc[0]))
    examples = [] if rule.kind == "present" else column[wrong].head(EXAMPLES).tolist()
    return Seen(count=int(wrong.sum()), examples=examples)


def failing(window: pd.DataFrame, demands: Sequence[Rule], most: int = 20) -> list[dict[str, Any]]:
    """Rows that break a rule by themselves, `most` of each rule: `{"rule": ..., column: value}`."""
    found: list[dict[str, Any]] = []
    for rule in demands:
        if rule.kind in ("rows", "mean", "figure"):
            continue
        for _, row in window[_wrong(window[rule.column], rule)].head(most).iterrows():
            found.append({"rule": name_of(rule), **{str(n): v for n, v in row.items()}})
    return found


def _wrong(column: pd.Series[Any], rule: Rule) -> NDArray[np.bool_]:
    """Which values break a rule that each is asked by itself, (rows,)."""
    missing = column.isna().to_numpy()
    if rule.kind == "present":
        wrong = missing
    elif rule.kind == "unique":
        wrong = column.duplicated(keep=False).to_numpy() & ~missing
    elif rule.kind == "one_of":
        wrong = ~column.isin(rule.values).to_numpy() & ~missing
    else:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        low = -np.inf if rule.low is None else rule.low
        high = np.inf if rule.high is None else rule.high
        wrong = ~((values >= low) & (values <= high)) & ~missing
    found: NDArray[np.bool_] = np.asarray(wrong, dtype=np.bool_)
    return found


def _inside(value: float, rule: Rule) -> bool:
    """Whether a value lies within the rule's bounds; NaN does not."""
    low = rule.low is None or value >= rule.low
    return low and (rule.high is None or value <= rule.high)


def _odd_stretches(spec: LineSpec, labels: pd.Series[float]) -> pd.Series[float]:
    """Label rate at the first row of each stretch that cannot be right; NaN, which passes, else."""
    gate, known = spec.gates.data, labels.dropna()
    odd = metrics.implausible_stretches(known.to_numpy(), gate.label_rate, gate.min_rows)
    rates = labels * np.nan
    for first, rate in odd:
        rates.loc[known.index[first]] = rate
    return rates
