"""Where a line's events come from: posted live, or read from files that it describes."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from headrace.declaration.base import Declared, DurationUs, Name

TIME_FORMATS = ("iso", "unix_s", "unix_ms", "unix_us", "timestamp")
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
    types: dict[str, str] = Field({})
    where: str | None = None
    explode: Explode | None = None
    derive: dict[str, str] = Field({})


class Impressions(FileSpec):
    """The exposures. `columns` maps a declared column to a file column or SQL expression."""

    id: str | None = None
    time: TimeSpec
    columns: dict[str, str] = Field({})


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
