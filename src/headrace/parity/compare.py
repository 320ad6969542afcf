"""Three values for every served one: as it was served, from the log, from history."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import requests
from headrace.bits import bits
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import TIME, input_fields
from headrace.line import LineStore
from headrace.parity import causes
from headrace.parity.causes import NONE, Bools, Cause, Ints, Names, Rows
from headrace.parity.history import FeastHistory, History, PartHistory
from headrace.parity.recompute import LogWindows, TickTimes
from headrace.parity.report import Findings
from headrace.settings import Settings
from headrace.store import Store
from headrace.train import code_of

GRACE_US: Final = 5_000_000
"""How long, beyond `cadence.tick`, a tick's rows may take to reach the online store."""

Source = Literal["feast", "parts"]


@dataclass
class _Windows:
    """Window values that log and history give, and why they differ, by feature."""

    log: dict[str, Ints] = field(default_factory=dict)
    history: dict[str, Ints] = field(default_factory=dict)
    causes: dict[str, Names] = field(default_factory=dict)


class Batch:
    """Served rows, none of them bootstrapped, with what each has to be compared with."""

    def __init__(
        self,
        settings: Settings,
        spec: LineSpec,
        served: pa.Table,
        offsets: Ints | None,
        *,
        history: Source,
    ) -> None:
        """`offsets` are the rows' places in the served log, None where they come from elsewhere."""
        self._spec, self._served, self._ttl_us = spec, served, spec.feature_ttl
        self._findings, self._windows = Findings(served, offsets), _Windows()
        self._home = settings.line_home(spec.line)
        self._versions = LineStore(settings.line_store_url(spec.line), spec.line)
        self._served_us = _us(served["served_at"])
        self._due_us = self._served_us - spec.cadence.tick - GRACE_US
        self._at_us = {view: _us(served[f"{view}__at"]) for view in spec.views}
        # a row may be younger than its request, whose clock is read before the store
        last_us = int(max(times.max() for times in (self._served_us, *self._at_us.values())))
        self._ticks = self._read_ticks(history, last_us)
        self._tick_us = self._ticks.newest(self._due_us)
        self._log = LogWindows.read(spec, self._home, self._first_moment_us(), last_us)
        self._history = self._open_history(settings, history)

    def _read_ticks(self, history: Source, last_us: int) -> TickTimes:
        reach_us = self._spec.longest_window_us if history == "parts" else 0
        first_us = int(self._due_us.min()) - max(reach_us, self._ttl_us or 0)
        return TickTimes(self._home, first_us, last_us)

    def _open_history(self, settings: Settings, history: Source) -> History:
        if history == "feast":
            return FeastHistory(Store(settings), self._spec)
        read_us = np.concatenate([*self._at_us.values(), np.empty(0, np.int64)])
        ticks = [*self._ticks.older(read_us), *self._ticks.manifests]
        return PartHistory(self._spec, self._home, ticks)

    def _first_moment_us(self) -> int:
        """The earliest moment that the log will be asked about."""
        asked = [self._tick_us, self._expiry_us]
        asked += [at_us[self._is_recent(at_us)] for at_us in self._at_us.values()]
        moments = np.concatenate(asked)
        return int(moments[moments > 0].min(initial=int(self._served_us.max())))

    def _is_recent(self, at_us: Ints) -> Bools:
        """Whether the log is asked about the moment of the row itself."""
        return at_us > np.maximum(self._tick_us - self._spec.longest_window_us, 0)

    @cached_property
    def _expiry_us(self) -> Ints:
        """The newest tick whose rows had expired at the request; 0 where rows do not expire."""
        if self._ttl_us is None:
            return np.zeros_like(self._served_us)
        return self._ticks.newest(self._served_us - self._ttl_us - 1)

    @cached_property
    def _other_version(self) -> Bools:
        """Whether a row was served by a version of another declaration or package than this."""
        here = code_of(self._spec)
        names = self._served["version"].combine_chunks().dictionary_encode()
        places: Ints = names.indices.to_numpy()
        other = []
        for name in names.dictionary.to_pylist():
            try:
                version = self._versions.get(name)
            except InputError:  # never published here: it says nothing about its features
                other.append(False)
            else:
                found = (version.feature_service, version.code)
                other.append(found != (self._spec.feature_service, here))
        told: Bools = np.array(other, dtype=np.bool_)[places]
        return told

    def compared(self) -> Findings:
        """All that differs."""
        for view in self._spec.views:
            self._check_view(view)
        self._check_inputs()
        return self._findings

    def _check_view(self, view: str) -> None:
        """Rows first, then their values: what is said of a row need not be said of each value."""
        at_us, count = self._at_us[view], self._served.num_rows
        keys = self._served.select(list(self._spec.views[view][0].key))
        held = self._history.rows(view, _twice(keys), np.concatenate([self._due_us, at_us]))
        newest_us = held["at"].to_numpy()[:count]
        if self._ttl_us is not None:
            newest_us = np.where(newest_us < self._served_us - self._ttl_us, 0, newest_us)
        in_history = (at_us == 0) | (held["at"].to_numpy()[count:] == at_us)
        rows = Rows(self._served_us, at_us, newest_us, in_history)
        told = causes.of_rows(rows, self._ttl_us)
        newest = pa.array(newest_us, mask=newest_us == 0).cast(TIME)
        self._findings.add(f"{view}__at", told, pa.nulls(count, TIME), newest)
        self._check_values(view, keys, rows, told == NONE, held.slice(count))

    def _check_values(
        self, view: str, keys: pa.Table, rows: Rows, sound: Bools, held: pa.Table
    ) -> None:
        """`held`: what history holds of the rows that were read; `sound`: rows without a cause."""
        absent = rows.at_us == 0
        known = absent | self._is_recent(rows.at_us)
        # a key without a row had nothing in its windows, or only what has expired since
        then_us = np.where(absent, self._expiry_us, np.where(known, rows.at_us, 0))
        moments_us = np.concatenate([then_us, self._tick_us])
        logged = self._log.values(view, _twice(keys), moments_us)
        unchanged = sound & (self._tick_us > rows.at_us)  # as history has it
        for feature in self._spec.views[view]:
            served = self._served[feature.name].to_numpy()
            then, due = np.split(logged[feature.name].to_numpy(), 2)
            log = np.where(absent, feature.empty, np.where(known, then, served))
            history = np.where(rows.in_history, held[feature.name].to_numpy(), served)
            found = self._by_version(causes.of_windows(served, log, history))
            lost = unchanged & (found == NONE) & (due != np.where(absent, then, served))
            found = np.where(lost, Cause.LOST_ROW, found)
            self._windows.causes[feature.name] = found
            self._windows.log[feature.name] = log
            self._windows.history[feature.name] = history
            told = pa.array(np.where(lost, due, log))
            self._findings.add(feature.name, found, told, pa.array(history))

    def _check_inputs(self) -> None:
        """Model inputs again, from the log's windows here and from history's by Feast."""
        log = requests.transform(self._spec, self._asked(self._windows.log))
        history = self._history.inputs(self._asked(self._windows.history))
        behind = _windows_behind(self._spec)
        for item in input_fields(self._spec):
            served = bits(self._served[item.name])
            wrong = (served != bits(log[item.name])) | (served != bits(history[item.name]))
            upstream = [self._windows.causes[name] for name in behind[item.name]]
            found = causes.of_inputs(wrong, upstream)
            found = np.where(found == Cause.FORMULA, self._by_version(found), found)
            given = (table[item.name].combine_chunks() for table in (log, history))
            self._findings.add(item.name, found, *given)

    def _asked(self, windows: dict[str, Ints]) -> pa.Table:
        asked = self._served.select(list(self._spec.columns))
        asked = asked.append_column("request_at", pa.array(self._served_us))
        for feature in self._spec.windows:
            asked = asked.append_column(feature.name, pa.array(windows[feature.name]))
        return asked

    def _by_version(self, found: Names) -> Names:
        """Name the version where it explains a mismatch; versions are read only if there is one."""
        if not (found != NONE).any():
            return found
        return np.where((found != NONE) & self._other_version, Cause.VERSION, found)


def _windows_behind(spec: LineSpec) -> dict[str, list[str]]:
    """The windows that each request feature is made of, directly or through others, in order."""
    windows = [feature.name for feature in spec.windows]
    read: dict[str, set[str]] = {name: {name} for name in windows}
    for feature in spec.request_features:
        parts = (read.get(name, set()) for name in feature.inputs)
        read[feature.name] = set().union(*parts)
    return {
        feature.name: [name for name in windows if name in read[feature.name]]
        for feature in spec.request_features
    }


def _us(column: pa.ChunkedArray) -> Ints:
    """Microseconds, 0 for null."""
    return np.asarray(pc.fill_null(column.cast(pa.int64()), 0).to_numpy(), dtype=np.int64)


def _twice(keys: pa.Table) -> pa.Table:
    return pa.concat_tables([keys, keys]).combine_chunks()
