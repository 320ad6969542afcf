"""A line's YAML as one frozen value: the only declaration of a model that must stay fresh.

Everything else (Feast views, Arrow schemas, the kernel, the trainer, the gates, the
DAGs) is derived from it. Unknown keys are refused. Durations are written with a unit
(`30s`, `10m`, `1h`, `7d`) and held as integer microseconds.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

ColumnType = Literal["string", "int", "float"]
Produces = Literal["id", "number"]

TIME_FORMATS = ("iso", "unix_s", "unix_ms", "unix_us", "timestamp")

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"^(\d+)\s*(ms|s|m|h|d)$")
_NAME = r"^[a-z][a-z0-9_]*$"
_SQL_STRING = re.compile(r"'(?:[^']|'')*'")
_SQL_QUOTED = re.compile(r'"[^"]+"')
_SQL_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\b(?!\s*\()")
_SQL_KEYWORDS = frozenset(
    {"case", "when", "then", "else", "end", "cast", "try_cast", "as", "is", "not", "null", "and"}
    | {"or", "in", "like", "ilike", "between", "true", "false", "distinct", "from", "bigint"}
    | {"integer", "int", "smallint", "tinyint", "hugeint", "double", "float", "real", "decimal"}
    | {"numeric", "varchar", "text", "boolean", "bool", "date", "time", "timestamp", "timestamptz"}
    | {"interval", "extract", "at", "zone", "escape", "similar", "to"}
)


def parse_duration_us(value: object) -> int:
    """Turn `"90s"` into 90_000_000 microseconds; a bare number is refused for want of a unit."""
    text = str(value).strip()
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(
            f"{value!r} is not a duration; write a whole number and a unit "
            "(ms, s, m, h, d), such as 30s, 10m, 1h or 7d"
        )
    return int(match[1]) * _UNITS_US[match[2]]


def _write_duration(duration_us: int) -> str:
    return f"{duration_us // 1_000}ms"


# In JSON a duration is text again, so that a dumped line can be parsed (the finest unit is ms).
DurationUs = Annotated[
    int,
    BeforeValidator(parse_duration_us),
    PlainSerializer(_write_duration, return_type=str, when_used="json"),
]
Name = Annotated[str, Field(pattern=_NAME)]


class Declared(BaseModel):
    """Base of all declared values: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeSpec(Declared):
    """Where a time comes from.

    `expression` is a column or a DuckDB SQL expression over the file's columns. `format`
    is `iso`, `unix_s`, `unix_ms`, `unix_us` (numbers or text), a strptime pattern (`%I` and
    `%p` for a 12-hour clock), or `timestamp` when the expression already is one. Times
    without a zone are read in the line's `timezone`; an hour that its clocks repeat means
    the first one, an hour that they skip means the first instant after it.
    """

    expression: str
    format: str = "iso"

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        if self.format not in TIME_FORMATS and "%" not in self.format:
            raise ValueError(
                f"format {self.format!r} is unknown; use {', '.join(TIME_FORMATS)} or a strptime "
                'pattern such as "%Y-%m-%d %H:%M:%S"'
            )
        return self


class DelayDistribution(Declared):
    """A seeded log-normal delay for files that hold no label time."""

    distribution: Literal["lognormal"] = "lognormal"
    median: DurationUs
    sigma: float = Field(gt=0)
    seed: int = 0


class Explode(Declared):
    """One row for each piece of a text column, cut at `separator`, named `into`."""

    column: str
    separator: str = " "
    into: Name


class FileSpec(Declared):
    """An event file: CSV, TSV, JSON lines or Parquet, optionally gzipped, below the data folder.

    `path` may be a glob (`clicks/2024-*.csv.gz`): its files are read in the order of their
    names. `format` defaults to what the name says. `separator`, `quoted`, `header`, `names`
    (instead of a header, or replacing it), `missing` (texts that mean NULL) and `types` (DuckDB
    types of columns, such as `{zip: VARCHAR}` to keep leading zeros) are for CSV and TSV.
    There, columns that hold only numbers are numbers and all else is text: dates and times
    stay text until an expression or a time's `format` reads them.
    Expressions are DuckDB SQL and see the file's columns, then `explode`'s, then each
    `derive` from top to bottom; rows for which `where` is not true are left out and counted.
    """

    path: str
    format: Literal["csv", "tsv", "parquet", "jsonl"] | None = None
    header: bool = True
    names: tuple[str, ...] = ()
    separator: str | None = Field(None, min_length=1, max_length=4)
    quoted: bool = True
    missing: tuple[str, ...] = Field(("",), min_length=1)
    types: dict[str, str] = {}
    where: str | None = None
    explode: Explode | None = None
    derive: dict[str, str] = {}


class Impressions(FileSpec):
    """The exposures. `columns` maps a declared column to a file column or SQL expression."""

    id: str | None = None
    time: TimeSpec
    columns: dict[str, str] = {}


class Outcomes(FileSpec):
    """A second file with the engagements; `impression_id` joins them to their exposure.

    `time` decides attribution; `known_at` is when it became known (default: at `time`).
    `value` gives 1, 0 (an explicit negative outcome) or NULL (not an outcome; counted).
    """

    impression_id: str
    time: TimeSpec
    known_at: TimeSpec | None = None
    value: str = "1"


class LabelInRow(Declared):
    """The label stands in the impression's own row and is known at `known_at` or after `delay`.

    `value` is a column or SQL expression giving 0, 1 or NULL (no label ever comes).
    Exactly one of `known_at` (a time), `delay_s` (SQL, seconds) and `delay` (seeded).
    With `positives_only`, a 0 is silence (no event); otherwise it is an explicit outcome.
    """

    value: str
    known_at: TimeSpec | None = None
    delay_s: str | None = None
    delay: DelayDistribution | None = None
    positives_only: bool = False

    @model_validator(mode="after")
    def _one_delay(self) -> Self:
        given = [n for n in ("known_at", "delay_s", "delay") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of known_at, delay_s, delay (got {given or 'none'})"
            )
        return self


class LiveSource(Declared):
    """Events are posted to the collector (`headrace ingest`)."""

    kind: Literal["live"] = "live"


class FileSource(Declared):
    """Events are read from files: impressions, and the label in the row or in a second file."""

    kind: Literal["files"] = "files"
    impressions: Impressions
    label: LabelInRow | None = None
    engagements: Outcomes | None = None
    hidden: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_label(self) -> Self:
        if (self.label is None) == (self.engagements is None):
            raise ValueError("give exactly one of source.label and source.engagements")
        return self

    @model_validator(mode="after")
    def _joinable(self) -> Self:
        if self.engagements is not None and self.impressions.id is None:
            raise ValueError(
                "source.engagements joins by impression id: give source.impressions.id"
            )
        return self

    def _not_known_at_exposure(self) -> tuple[set[str], set[str]]:
        """Names (lower case) that no feature may mention, and names that none may copy.

        The first are `hidden`, the label's words and, forward, what `derive` makes of those.
        `hidden` is not followed forward: an actual departure and its delay may tell the schedule.
        The second are what the label is derived from, and a column that only tells its time.
        """
        hidden = {name.lower() for name in self.hidden}
        if self.label is None:
            return hidden, set()
        derive = {
            name.lower(): names_of(sql) - _SQL_KEYWORDS
            for name, sql in self.impressions.derive.items()
        }
        label = names_of(self.label.value) - _SQL_KEYWORDS
        for name, words in derive.items():
            if words & label:
                label.add(name)
        behind = set(label)
        for name in reversed(derive):
            if name in behind:
                behind |= derive[name]
        known_at = self.label.known_at
        times = {self.label.delay_s, known_at.expression if known_at else None}
        return hidden | label, behind | {text.strip().lower() for text in times if text}

    @model_validator(mode="after")
    def _no_leak(self) -> Self:
        hidden, sources = self._not_known_at_exposure()
        for column, expression in self.impressions.columns.items():
            leaked = (names_of(expression) & hidden) | (
                {expression.strip().strip('"').lower()} & sources
            )
            if leaked:
                raise ValueError(
                    f"source.impressions.columns.{column}: {sorted(leaked)[0]!r} is the label or "
                    "is not known at exposure, so it may not become a feature; take it out"
                )
        return self


class LabelSpec(Declared):
    """What is predicted: whether `engagement` follows an impression inside the window.

    `provisional_after`: an impression without an engagement becomes a provisional negative
    after this wait and is corrected if one comes later inside the window. Without it a
    sample waits for an engagement or for the end of the window. `outcome: explicit` means that
    negatives are reported too (an engagement record with value 0); silence then never becomes
    a label: the impression ends as `unlabelled` when its window closes.
    """

    engagement: Name
    outcome: Literal["implicit", "explicit"] = "implicit"
    attribution_window: DurationUs
    provisional_after: DurationUs | None = None

    @model_validator(mode="after")
    def _wait_inside_window(self) -> Self:
        if self.provisional_after is not None and self.provisional_after > self.attribution_window:
            raise ValueError("provisional_after is longer than attribution_window; shorten it")
        if self.provisional_after is not None and self.outcome == "explicit":
            raise ValueError("outcome: explicit waits for outcomes; remove provisional_after")
        return self


class WindowFeature(Declared):
    """An integer aggregate of one kind of event for a key over `[t - window, t)` of knowledge time.

    `event` is `impression` or an engagement's name. `count` counts events; `sum` adds
    `column` (an int column, or `value`: 1 for an engagement, 0 for an explicit negative outcome).
    """

    name: Name
    key: tuple[str, ...] = Field(min_length=1)
    event: Name
    aggregate: Literal["count", "sum"]
    column: str = "value"
    window: DurationUs


class TimePart(Declared):
    """`hour_of_day` (0-23) or `day_of_week` (0 = Monday) of the request, in the line's timezone."""

    name: Name
    kind: Literal["hour_of_day", "day_of_week"]

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    @property
    def produces(self) -> Produces:
        return "id"


class Hash(Declared):
    """The 63-bit id of a text or int column; missing is -1."""

    name: Name
    kind: Literal["hash"]
    of: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def produces(self) -> Produces:
        return "id"


class Cross(Declared):
    """The 63-bit id of a tuple of columns or ids; missing parts count as a value of their own."""

    name: Name
    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.of

    @property
    def produces(self) -> Produces:
        return "id"


class Bucketize(Declared):
    """The index of the bucket `boundaries[i-1] <= x < boundaries[i]`; missing is -1."""

    name: Name
    kind: Literal["bucketize"]
    of: str
    boundaries: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise ValueError("boundaries must rise strictly")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def produces(self) -> Produces:
        return "id"


class Ratio(Declared):
    """`(numerator + a) / (denominator + a + b)` with `prior: [a, b]`, one float64 division."""

    name: Name
    kind: Literal["ratio"]
    of: tuple[str, str]
    prior: tuple[float, float]

    @model_validator(mode="after")
    def _prior_positive(self) -> Self:
        if min(self.prior) < 0 or sum(self.prior) <= 0:
            raise ValueError("prior needs two numbers >= 0 with a sum > 0")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.of

    @property
    def produces(self) -> Produces:
        return "number"


class Number(Declared):
    """A number as it is (`number`) or as `log1p(max(x, 0))`; missing is NaN."""

    name: Name
    kind: Literal["number", "log1p"]
    of: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def produces(self) -> Produces:
        return "number"


RequestFeature = Annotated[
    TimePart | Hash | Cross | Bucketize | Ratio | Number, Field(discriminator="kind")
]


class ModelSpec(Declared):
    """Family and hyper-parameters. `categorical` and `numeric` name request features."""

    family: Literal["ftrl", "deep", "ftrl_deep"] = "ftrl_deep"
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    table_bits: int = Field(18, ge=8, le=26)
    embedding_dim: int = Field(8, ge=1, le=128)
    hidden: tuple[int, ...] = (32, 16)
    batch_size: int = Field(256, ge=1, le=65536)
    epochs: int = Field(1, ge=1, le=100)
    ftrl_alpha: float = Field(0.05, gt=0)
    ftrl_beta: float = Field(1.0, ge=0)
    ftrl_l1: float = Field(0.0, ge=0)
    ftrl_l2: float = Field(1.0, ge=0)
    embedding_learning_rate: float = Field(0.05, gt=0)
    dense_learning_rate: float = Field(0.002, gt=0)

    @model_validator(mode="after")
    def _has_inputs(self) -> Self:
        if not self.categorical and not self.numeric:
            raise ValueError("model needs at least one categorical or numeric feature")
        return self


class DataGateSpec(Declared):
    """What a window of samples must look like to be learned."""

    min_rows: int = Field(50, ge=1)
    label_rate: tuple[float, float] = (0.0, 1.0)
    max_missing_share: float = Field(0.5, ge=0, le=1)


class ModelGateSpec(Declared):
    """What a candidate must show against the champion on identical later rows."""

    min_rows: int = Field(100, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_logloss_increase: float = Field(0.01, ge=0)
    calibration: tuple[float, float] = (0.5, 2.0)
    max_evidence_age: DurationUs = 600_000_000


class GateSpec(Declared):
    """Both gates fail closed."""

    data: DataGateSpec = DataGateSpec()
    model: ModelGateSpec = ModelGateSpec()


class CadenceSpec(Declared):
    """`tick`: micro-batch of features and samples; `incremental`, `full`: the two DAGs."""

    tick: DurationUs = 1_000_000
    incremental: DurationUs = 30_000_000
    full: DurationUs = 86_400_000_000


class LineSpec(Declared):
    """One line: a named model with its events, features, label, gates and cadence."""

    line: Name
    version: int = Field(1, ge=1)
    description: str = ""
    timezone: str = "UTC"
    seed: int = Field(0, ge=0)
    columns: dict[Name, ColumnType] = Field(min_length=1)
    source: Annotated[LiveSource | FileSource, Field(discriminator="kind")]
    label: LabelSpec
    windows: tuple[WindowFeature, ...] = ()
    request_features: tuple[RequestFeature, ...] = ()
    model: ModelSpec
    gates: GateSpec = GateSpec()
    cadence: CadenceSpec = CadenceSpec()

    @property
    def feature_service(self) -> str:
        """Name of the Feast feature service, such as `flights_v1`."""
        return f"{self.line}_v{self.version}"

    @property
    def views(self) -> dict[str, tuple[WindowFeature, ...]]:
        """Window features by Feast view: one view (`flights_by_origin_dest`) for each key tuple."""
        grouped: dict[str, list[WindowFeature]] = {}
        for feature in self.windows:
            grouped.setdefault(f"{self.line}_by_{'_'.join(feature.key)}", []).append(feature)
        return {name: tuple(features) for name, features in grouped.items()}

    @property
    def longest_window_us(self) -> int:
        """Length of the longest declared window, 0 without windows."""
        return max((feature.window for feature in self.windows), default=0)

    @model_validator(mode="after")
    def _names_hang_together(self) -> Self:
        known: dict[str, str] = dict(self.columns)
        for feature in self.windows:
            self._check_window(feature)
            self._declare(known, feature.name, "int")
        for request in self.request_features:
            for name in request.inputs:
                if name not in known:
                    raise ValueError(
                        f"request_features.{request.name}: {name!r} is not a column, a window "
                        "or an earlier request feature; declare it above"
                    )
                self._check_kind(request, name, known[name])
            self._declare(known, request.name, request.produces)
        produced = {request.name: request.produces for request in self.request_features}
        for kind, names in (("id", self.model.categorical), ("number", self.model.numeric)):
            for name in names:
                if produced.get(name) != kind:
                    raise ValueError(
                        f"model: {name!r} is not a request feature that produces a {kind}; wrap it "
                        "(hash, cross, bucketize … give ids; number, log1p, ratio give numbers)"
                    )
        if isinstance(self.source, FileSource):
            unknown = set(self.source.impressions.columns) - set(self.columns)
            if unknown:
                raise ValueError(
                    f"source.impressions.columns: {sorted(unknown)} are not declared in columns"
                )
        return self

    @staticmethod
    def _check_kind(request: RequestFeature, name: str, kind: str) -> None:
        if request.kind in ("hash", "cross") and kind in ("float", "number"):
            raise ValueError(
                f"request_features.{request.name}: {name!r} is a {kind}, which has no identity; "
                "bucketize it first"
            )
        if request.kind in ("bucketize", "ratio", "number", "log1p") and kind == "string":
            raise ValueError(
                f"request_features.{request.name}: {name!r} is text, not a number; hash it"
            )

    def _check_window(self, feature: WindowFeature) -> None:
        for name in feature.key:
            if self.columns.get(name) not in ("string", "int"):
                raise ValueError(
                    f"windows.{feature.name}: key {name!r} must be a declared string or int column"
                )
        if feature.event not in ("impression", self.label.engagement):
            raise ValueError(
                f"windows.{feature.name}: event {feature.event!r} is neither 'impression' nor the "
                f"engagement {self.label.engagement!r}"
            )
        if feature.column != "value" and self.columns.get(feature.column) != "int":
            raise ValueError(
                f"windows.{feature.name}: column {feature.column!r} must be 'value' or an int "
                "column (sums are of integers)"
            )

    @staticmethod
    def _declare(known: dict[str, str], name: str, kind: str) -> None:
        if name in known or name in RESERVED:
            raise ValueError(f"{name!r} is declared twice or reserved; choose another name")
        known[name] = kind


RESERVED = frozenset(
    {"event", "impression_id", "request_id", "event_at", "arrival_at", "value", "offset"}
    | {"event_timestamp", "label", "request_at", "served_at", "score", "version"}
)


def words_of(expression: str) -> set[str]:
    """Identifiers in a SQL expression.

    Text literals and names of functions (a word before a parenthesis) are left out.
    """
    text = _SQL_STRING.sub("''", expression)
    quoted = {match[1:-1] for match in _SQL_QUOTED.findall(text)}
    return quoted | set(_SQL_WORD.findall(_SQL_QUOTED.sub(" ", text)))


def names_of(expression: str) -> set[str]:
    """`words_of` in lower case, as SQL compares names."""
    return {word.lower() for word in words_of(expression)}
