"""What a parity check found: how much was compared, what differs, and why."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from headrace.parity.causes import NONE, Ints, Names


@dataclass(frozen=True)
class Mismatch:
    """One value that differs, with where it stands and why.

    `feature` is a window, a model input, or `<view>__at` where the row itself is the wrong one.
    `offset` is the row's place in the served log (None where the rows came from elsewhere). `log`
    and `history` are what each gives; times are ISO 8601, missing is None.
    """

    impression_id: str
    request_id: str
    offset: int | None
    served_at: str
    version: str
    feature: str
    cause: str
    served: Any
    log: Any
    history: Any


@dataclass(frozen=True)
class ParityReport:
    """`rows` compared with the event log and with history, joined by `history` (feast or parts).

    `mismatches` counts values that differ, `by_feature` and `by_cause` split it; `first` are the
    first of them in the order of the served rows. `defaults` counts rows left out: the store did
    not answer and defaults stood in for what it holds.
    """

    history: str
    rows: int = 0
    defaults: int = 0
    mismatches: int = 0
    by_feature: dict[str, int] = field(default_factory=dict)
    by_cause: dict[str, int] = field(default_factory=dict)
    first: list[Mismatch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)

    def plus(self, later: Self, shown: int | None) -> Self:
        """Both reports as one, with at most `shown` mismatches in detail."""
        return type(self)(
            history=self.history,
            rows=self.rows + later.rows,
            defaults=self.defaults + later.defaults,
            mismatches=self.mismatches + later.mismatches,
            by_feature=dict(Counter(self.by_feature) + Counter(later.by_feature)),
            by_cause=dict(Counter(self.by_cause) + Counter(later.by_cause)),
            first=[*self.first, *later.first][:shown],
        )


class Findings:
    """Mismatches of one batch of served rows, gathered column by column."""

    def __init__(self, served: pa.Table, offsets: Ints | None) -> None:
        self._served = served
        self._offsets = offsets
        self._found: list[tuple[str, Names, pa.Array, pa.Array]] = []

    def add(self, feature: str, causes: Names, log: pa.Array, history: pa.Array) -> None:
        """Note the rows that have a cause; `log` and `history` are the column, row for row."""
        if (causes != NONE).any():
            self._found.append((feature, causes, log, history))

    def report(self, history: str, shown: int | None) -> ParityReport:
        """The batch's report, with at most `shown` mismatches in detail."""
        places = [np.flatnonzero(causes != NONE) for _, causes, _, _ in self._found]
        column = np.repeat(np.arange(len(places)), [len(rows) for rows in places])
        row = np.concatenate([np.empty(0, dtype=np.intp), *places])
        first = np.argsort(row, kind="stable")[:shown].tolist()
        told = Counter[str]()
        for _, causes, _, _ in self._found:
            told.update(causes[causes != NONE].tolist())
        return ParityReport(
            history=history,
            rows=self._served.num_rows,
            mismatches=len(row),
            by_feature={
                feature: len(rows) for (feature, *_), rows in zip(self._found, places, strict=True)
            },
            by_cause=dict(told),
            first=[self._mismatch(int(row[i]), *self._found[column[i]]) for i in first],
        )

    def _mismatch(
        self, row: int, feature: str, causes: Names, log: pa.Array, history: pa.Array
    ) -> Mismatch:
        served = self._served.slice(row, 1).to_pylist()[0]
        return Mismatch(
            impression_id=served["impression_id"],
            request_id=served["request_id"],
            offset=None if self._offsets is None else int(self._offsets[row]),
            served_at=served["served_at"].isoformat(),
            version=served["version"],
            feature=feature,
            cause=str(causes[row]),
            served=_plain(self._served[feature][row]),
            log=_plain(log[row]),
            history=_plain(history[row]),
        )


def _plain(value: pa.Scalar) -> Any:
    """A JSON value: times as text, a NaN (missing) as None."""
    plain = value.as_py()
    if isinstance(plain, float) and math.isnan(plain):
        return None
    return plain.isoformat() if hasattr(plain, "isoformat") else plain
