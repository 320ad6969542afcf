"""Parity: what was served, recomputed from the event log, column by column, bit by bit.

The recomputation shares the window kernel and `requests.transform` with the live path but none
of its state: it reads the whole event log, joins and counts afresh, and asks for each served
row's features at the very tick (`<view>__at`) whose Feast row the server read. So it finds what
can differ: a lost, doubled or late push, a restored state that is not the state, a formula that
changed between two processes, a float that did not survive a store.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import dataset

from headrace import requests, sample
from headrace.declaration import LineSpec
from headrace.events import event_schema, input_fields, served_schema
from headrace.labels.state import LabelState
from headrace.log.files import FileLog
from headrace.settings import Settings
from headrace.windows import WindowState

BOOTSTRAP: Final = "bootstrap"
FRESH_WITHIN_US: Final = 5_000_000  # how long a tick's rows may take to reach the online store
_SHOWN: Final = 20


@dataclass(frozen=True)
class ParityReport:
    """`rows` compared, `mismatches` (values that differ), and the first of them in detail.

    An entry of `first` has `impression_id`, `kind` (`window`, `input`, `stale`), `feature`,
    `served`, `recomputed`. `by_feature` counts all mismatches by feature (or view).
    """

    rows: int
    mismatches: int
    first: list[dict[str, Any]] = field(default_factory=list)
    by_feature: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)


def check(settings: Settings, spec: LineSpec, served: pa.Table | None = None) -> ParityReport:
    """Compare served rows (all that the served log holds, unless given) with the event log.

    Rows of version `bootstrap` were made offline and are left out. Memory: the event log's
    impressions and engagements, and the served rows.
    """
    home = settings.line_home(spec.line)
    if served is None:
        log = FileLog(home / "log" / "served", served_schema(spec))
        served = log.read(0, log.head)
    served = served.filter(pc.not_equal(served["version"], BOOTSTRAP)).combine_chunks()
    findings = _Findings(served)
    if served.num_rows:
        state = _window_state(settings, spec)
        for view in spec.views:
            _check_windows(findings, state, spec, view)
            _check_freshness(findings, settings, spec, view)
        _check_inputs(findings, spec)
    return ParityReport(
        rows=served.num_rows,
        mismatches=sum(findings.counts.values()),
        first=findings.first,
        by_feature=findings.counts,
    )


class _Findings:
    def __init__(self, served: pa.Table) -> None:
        self.served = served
        self.counts: dict[str, int] = {}
        self.first: list[dict[str, Any]] = []

    def add(self, kind: str, feature: str, wrong: NDArray[np.bool_], expected: pa.Array) -> None:
        """Record where `wrong`; `expected` is the recomputed column, row for row."""
        rows = np.flatnonzero(wrong)
        if rows.size == 0:
            return
        self.counts[feature] = self.counts.get(feature, 0) + int(rows.size)
        for row in rows[: _SHOWN - len(self.first)].tolist():
            self.first.append(
                {
                    "impression_id": self.served["impression_id"][row].as_py(),
                    "kind": kind,
                    "feature": feature,
                    "served": _plain(self.served[feature][row]),
                    "recomputed": _plain(expected[row]),
                }
            )


def _window_state(settings: Settings, spec: LineSpec) -> WindowState:
    log = FileLog(settings.line_home(spec.line) / "log" / "events", event_schema(spec))
    events = log.read(0, log.head)
    offsets = pa.array(np.arange(events.num_rows, dtype=np.int64))
    state = WindowState(spec)
    state.append(LabelState(spec).resolve(events.append_column("offset", offsets)))
    return state


def _check_windows(findings: _Findings, state: WindowState, spec: LineSpec, view: str) -> None:
    """Values at the tick that wrote the row; a key that had no row must have been empty."""
    served = findings.served
    key = list(spec.views[view][0].key)
    at_us = _us(served[f"{view}__at"])
    found = at_us > 0
    values = state.values(served.select(key), np.where(found, at_us, 0), view)
    for feature in spec.views[view]:
        expected = np.where(found, values[feature.name].to_numpy(), feature.empty)
        wrong = served[feature.name].to_numpy() != expected
        findings.add("window", feature.name, wrong, pa.array(expected))


def _check_inputs(findings: _Findings, spec: LineSpec) -> None:
    """Model inputs again from the served columns, windows and time."""
    served = findings.served
    names = [*spec.columns, *(feature.name for feature in spec.windows)]
    asked = served.select(names).append_column("request_at", served["served_at"].cast(pa.int64()))
    expected = requests.transform(spec, asked)
    for name in (item.name for item in input_fields(spec)):
        wrong = _bits(served[name]) != _bits(expected[name])
        findings.add("input", name, wrong, expected[name].combine_chunks())


def _check_freshness(findings: _Findings, settings: Settings, spec: LineSpec, view: str) -> None:
    """The row read must be the newest that was written `FRESH_WITHIN_US` before the request."""
    served = findings.served
    key = list(spec.views[view][0].key)
    due_us = _us(served["served_at"]) - FRESH_WITHIN_US
    written = _written_rows(settings, spec, view, int(due_us.max()))
    if written.num_rows == 0:
        return
    asked = pd.DataFrame(
        {
            "key": _key_ids(served, key),
            "time_us": due_us,
            "row": np.arange(served.num_rows),
        }
    ).sort_values("time_us", kind="stable")
    known = pd.DataFrame(
        {"key": _key_ids(written, key), "time_us": _us(written["event_timestamp"])}
    ).sort_values("time_us", kind="stable")
    known["newest_us"] = known["time_us"]
    joined = pd.merge_asof(asked, known, on="time_us", by="key").sort_values("row")
    newest = joined["newest_us"].fillna(0).to_numpy().astype(np.int64)
    if spec.feature_ttl is not None:  # an expired row is passed over, whatever was written last
        newest[newest < _us(served["served_at"]) - spec.feature_ttl] = 0
    wrong = newest > _us(served[f"{view}__at"])
    expected = pa.array(newest).cast(served.schema.field(f"{view}__at").type)
    findings.add("stale", f"{view}__at", wrong, expected)


def _written_rows(settings: Settings, spec: LineSpec, view: str, before_us: int) -> pa.Table:
    """Keys and times of a view's committed rows; files are found by tick manifests only."""
    home = settings.line_home(spec.line)
    columns = [*spec.views[view][0].key, "event_timestamp"]
    parts = [
        str(home / tick.features[view])
        for tick in sample.ticks(home)
        if view in tick.features and tick.at_us <= before_us
    ]
    if not parts:
        return pa.table({name: [] for name in columns})
    return dataset.dataset(parts, format="parquet").to_table(columns=columns)


def _key_ids(table: pa.Table, key: list[str]) -> NDArray[np.int64]:
    return requests.cross64([requests.hash64(table[name]) for name in key])


def _us(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Microseconds, 0 for null."""
    times: NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    return times


def _bits(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Values as 64-bit patterns; every NaN (missing) is the same one."""
    values = column.to_numpy()
    if values.dtype == np.float64:
        values = np.where(np.isnan(values), np.nan, values).view(np.int64)
    bits: NDArray[np.int64] = values
    return bits


def _plain(value: pa.Scalar) -> Any:
    plain = value.as_py()
    return plain.isoformat() if hasattr(plain, "isoformat") else plain
