"""Records of the log and their Arrow schemas.

The **event log** of a line is one merged sequence in arrival order: impressions and
engagements by `event`. `arrival_at` is stamped by the log when it appends (strictly later
than every earlier append) and is the knowledge time of the record; `event_at` is the
record's own clock and decides attribution only.

The **served log** holds the vectors that the server used, keyed by `impression_id`, and who
answered: `arm` (`champion` without a race) and `propensity`, the probability in (0, 1] with which
that arm was drawn. Both are null for rows that no server drew: of a history, of a replay. Rows of
the arm `pinned` were scored by the version that a request asked for: they are logged, but never
sampled. `fallback` says who stood in (docs/adr/0033), in words with commas between them, and is
null where nobody had to: `defaults`, the vector holds no features that were read, so the row is
never sampled; `previous`, an earlier version answered in place of the one that was due; `prior`, no
model did, and `version` is `prior`.

The **sample log** holds served vectors with their label: first a sample (`revision` 0),
later at most one correction (`revision` 1). `positive_weight` and `negative_weight` say how
much of each class is true of the impression: (1, 0) positive, (0, 1) negative, (1, -1) a
correction: positive after all, no longer negative. They are facts, whatever
`label.delayed_feedback` makes of them when they are learned.

Where `label.conversion` is declared, the same three facts are told of click-and-conversion:
`conversion` (0 or 1), `conversion_positive_weight`, `conversion_negative_weight`, and (0, 0) where
a row says nothing new of it. A conversion that comes after its click's row is a row of its own, the
next revision, whose weights of the click are (0, 0).
"""

from __future__ import annotations

from calendar import timegm
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import InputError

IMPRESSION: Final = "impression"
CHAMPION_ARM: Final = "champion"
PINNED_ARM: Final = "pinned"
DEFAULTS: Final = "defaults"
PREVIOUS: Final = "previous"
PRIOR: Final = "prior"
TIME: Final = pa.timestamp("us", tz="UTC")
LATER: Final = {"headrace": "null in logs from before the column was there"}
ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
}


def micros(moment: datetime) -> int:
    """A moment with a zone as whole microseconds since 1970, as the logs hold times."""
    # no arithmetic of datetimes: subclasses such as pendulum's give other types of difference
    return timegm(moment.utctimetuple()) * 1_000_000 + moment.microsecond


def moment(name: str, text: str) -> int:
    """ISO 8601, UTC by default, as microseconds since 1970. Raises `InputError` naming `name`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{name} {text!r} is not a time; give one like 2026-11-20 or 2026-11-20T08:00:00Z"
        ) from None
    return micros(found.replace(tzinfo=found.tzinfo or UTC))


def stamp(at_us: int) -> str:
    """A moment (us since 1970) as it stands in the names of files: `20261101T000000Z`."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at_us)
    return moment.strftime("%Y%m%dT%H%M%S" + (".%fZ" if moment.microsecond else "Z"))


def event_schema(spec: LineSpec) -> pa.Schema:
    """Schema of the event log; declared columns are null where a record does not carry them."""
    return pa.schema(
        [
            pa.field("event", pa.string(), nullable=False),
            pa.field("impression_id", pa.string(), nullable=False),
            pa.field("request_id", pa.string()),
            pa.field("event_at", TIME, nullable=False),
            pa.field("arrival_at", TIME, nullable=False),
            pa.field("value", pa.int64(), nullable=False),
            *_declared_columns(spec),
        ]
    )


def served_schema(spec: LineSpec) -> pa.Schema:
    """Schema of the served log: request columns, window values, model inputs, the answer.

    `<view>__at` is the `event_timestamp` of the Feast row that was read (null: the key had none).
    `score` is the probability of a click; with conversions declared, `conversion_score` is that of
    a conversion given a click and `click_and_conversion_score` their product.
    """
    return pa.schema(
        [
            pa.field("impression_id", pa.string(), nullable=False),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("served_at", TIME, nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("score", pa.float64(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in task_scores(spec)),
            pa.field("arm", pa.string(), metadata=LATER),
            pa.field("propensity", pa.float64(), metadata=LATER),
            pa.field("fallback", pa.string(), metadata=LATER),
            *_declared_columns(spec),
            *(pa.field(f"{view}__at", TIME) for view in spec.views),
            *(pa.field(feature.name, pa.int64(), nullable=False) for feature in spec.windows),
            *input_fields(spec),
        ]
    )


def sample_schema(spec: LineSpec) -> pa.Schema:
    """Schema of the sample log: the served row, its label, weights, and the log offsets behind it.

    `engagement_offset` is -1 where no engagement stands behind the row: it has none, or an
    earlier row has told it; so is `conversion_offset`.
    """
    conversion = []
    if spec.converts:
        conversion = [
            pa.field("conversion", pa.int8(), nullable=False),
            pa.field("conversion_positive_weight", pa.float32(), nullable=False),
            pa.field("conversion_negative_weight", pa.float32(), nullable=False),
            pa.field("conversion_offset", pa.int64(), nullable=False),
        ]
    return pa.schema(
        [
            *served_schema(spec),
            pa.field("event_at", TIME, nullable=False),
            pa.field("revision", pa.int32(), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("positive_weight", pa.float32(), nullable=False),
            pa.field("negative_weight", pa.float32(), nullable=False),
            pa.field("impression_offset", pa.int64(), nullable=False),
            pa.field("engagement_offset", pa.int64(), nullable=False),
            pa.field("emitted_at", TIME, nullable=False),
            *conversion,
        ]
    )


def task_scores(spec: LineSpec) -> tuple[str, ...]:
    """Columns of the served log for the tasks beside the click."""
    if not spec.converts:
        return ()
    return ("conversion_score", "click_and_conversion_score")


def weight_columns(conversion: bool) -> tuple[str, ...]:
    """Columns of the samples that a model weighs its losses by, positives before negatives."""
    own = ("positive_weight", "negative_weight")
    return own if not conversion else (*own, *(f"conversion_{name}" for name in own))


def offset_columns(spec: LineSpec) -> tuple[str, ...]:
    """Columns of the samples that hold offsets of events; -1 is none."""
    own = ("impression_offset", "engagement_offset")
    return own if not spec.converts else (*own, "conversion_offset")


def of_defaults(served: pa.Table) -> NDArray[np.bool_]:
    """Served rows whose vector holds defaults in place of features, (n,)."""
    words = pc.fill_null(served["fallback"], "")
    found: NDArray[np.bool_] = pc.starts_with(words, pattern=DEFAULTS).to_numpy()
    return found


def as_due(served: pa.Table) -> pa.Table:
    """The served rows for which nobody stood in."""
    return served.filter(pc.is_null(served["fallback"]))


def input_fields(spec: LineSpec) -> list[pa.Field]:
    """Request features in declared order: int64 ids (-1 missing), float64 numbers (NaN missing)."""
    types = {"id": pa.int64(), "number": pa.float64()}
    return [
        pa.field(feature.name, types[feature.produces], nullable=False)
        for feature in spec.request_features
    ]


def _declared_columns(spec: LineSpec) -> list[pa.Field]:
    return [pa.field(name, ARROW_TYPES[kind]) for name, kind in spec.columns.items()]
