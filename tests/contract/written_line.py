"""A small line whose ticks a test writes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace import cycle, evaluate, requests
from headrace.atomic import write_json
from headrace.cycle import Cycle
from headrace.declaration import LineSpec
from headrace.events import TIME, event_schema, sample_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.sample import TickManifest, head_tick, read_samples, read_tick
from headrace.settings import PROJECT, Settings, find_line, load_settings

LINE = """
line: tiny
columns: {user_id: string, item_id: string}
source: {kind: live}
label: {engagement: click, attribution_window: 10m, provisional_after: 10s}
windows:
  - {name: item_clicks_count_1ms, key: [item_id], event: click, aggregate: count, window: 1ms}
request_features:
  - {name: user, kind: hash, of: user_id}
  - {name: item, kind: hash, of: item_id}
  - {name: clicks_log, kind: log1p, of: item_clicks_count_1ms}
model:
  categorical: [user, item]
  numeric: [clicks_log]
  table_bits: 8
  embedding_dim: 2
  hidden: [4]
  batch_size: 64
  epochs: 2
gates:
  data: {min_rows: 100, label_rate: [0.05, 0.8], max_missing_share: 0.2}
  model: {min_rows: 100, max_logloss_increase: 0.02, calibration: [0.5, 2.0]}
"""
ROWS = 50
START_US = 1_700_000_000_000_000


@dataclass
class Line:
    """A line whose ticks the test writes itself: impressions, one click event for each click.

    Its window is so short that it is empty at every tick, as the rows say.
    """

    settings: Settings
    spec: LineSpec
    scores: tuple[float, float] = (0.2, 0.2)  # served of items 0-2, of the others

    @property
    def home(self) -> Path:
        return self.settings.line_home(self.spec.line)

    @property
    def store(self) -> LineStore:
        return LineStore(self.settings.line_store_url(self.spec.line), self.spec.line)

    def tick(
        self,
        count: int = 1,
        click: Callable[[np.ndarray], np.ndarray] | None = None,
        version: str = "bootstrap",
    ) -> None:
        """Commit ticks of 50 samples; items 0-2 of 10 are clicked at 60%, the others at 5%."""
        for _ in range(count):
            self._one(head_tick(self.home), click, version)

    def _one(
        self, tick: int, click: Callable[[np.ndarray], np.ndarray] | None, version: str
    ) -> None:
        generator = np.random.default_rng(tick)
        items = generator.integers(0, 10, ROWS)
        clicked = generator.random(ROWS) < np.where(items < 3, 0.6, 0.05)
        labels = (clicked if click is None else click(clicked)).astype(np.int8)
        ids = [f"{tick}:{i}" for i in range(ROWS)]
        columns = pa.table(
            {
                "user_id": [f"u{u}" for u in generator.integers(0, 20, ROWS)],
                "item_id": [f"i{i}" for i in items],
                "request_at": np.full(ROWS, START_US + tick * 1_000_000),
                "item_clicks_count_1ms": np.zeros(ROWS, np.int64),
            }
        )
        first, stop = self._log(tick, ids, columns, np.flatnonzero(labels))
        engagements = np.full(ROWS, -1)
        engagements[labels == 1] = np.arange(first + ROWS, stop)
        at = pa.array(columns["request_at"].to_numpy()).cast(TIME)
        table = {name: columns[name] for name in columns.column_names} | {
            **{f"{view}__at": pa.nulls(ROWS, TIME) for view in self.spec.views},
            **requests.transform(self.spec, columns).to_pydict(),
            "impression_id": ids,
            "request_id": ids,
            "served_at": at,
            "event_at": at,
            "emitted_at": at,
            "version": [version] * ROWS,
            "score": np.where(items < 3, *self.scores),
            "arm": ["champion"] * ROWS,
            "propensity": np.ones(ROWS),
            "fallback": pa.nulls(ROWS, pa.string()),
            "revision": np.zeros(ROWS, np.int32),
            "label": labels,
            "positive_weight": labels.astype(np.float32),
            "negative_weight": (1 - labels).astype(np.float32),
            "impression_offset": np.arange(first, first + ROWS),
            "engagement_offset": engagements,
        }
        self.commit(tick, table, (first, stop))

    def commit(self, tick: int, columns: dict[str, Any], events: tuple[int, int]) -> None:
        schema = sample_schema(self.spec)
        samples = pa.table({f.name: columns[f.name] for f in schema}).cast(schema)
        path = f"samples/b={tick:08d}.parquet"
        (self.home / "samples").mkdir(parents=True, exist_ok=True)
        pq.write_table(samples, self.home / path)
        at_us = START_US + tick * 1_000_000 + 2_000
        manifest = TickManifest(tick, at_us, events, (0, 0), path, None, {}, {"samples": ROWS})
        write_json(self.home / "ticks" / f"{tick:08d}.json", manifest.to_json())

    def _log(
        self, tick: int, ids: list[str], columns: pa.Table, clicks: np.ndarray
    ) -> tuple[int, int]:
        schema = event_schema(self.spec)
        rows = ROWS + clicks.size
        at = pa.array(np.full(rows, START_US + tick * 1_000_000)).cast(TIME)
        every = np.concatenate([np.arange(ROWS), clicks])
        given: dict[str, Any] = {
            "event": ["impression"] * ROWS + ["click"] * clicks.size,
            "impression_id": [ids[i] for i in every],
            "request_id": [ids[i] for i in every],
            "event_at": at,
            "arrival_at": at,
            "value": np.ones(rows, np.int64),
            **{name: columns[name].take(pa.array(every)) for name in self.spec.columns},
        }
        log = FileLog(self.home / "log" / "events", schema, writer=True)
        try:
            first = log.append(pa.table({f.name: given[f.name] for f in schema}).cast(schema))
        finally:
            log.close()
        return first, first + rows

    def begin(self) -> Cycle:
        began = cycle.started(cycle.new_run(), "incremental")
        return cycle.begin(self.settings, self.spec, began)

    def learn(self) -> Cycle:
        """A cycle up to its trained candidate."""
        return cycle.learn(self.settings, self.spec, self.begin())

    def finish(self, trained: Cycle) -> Cycle:
        """Evaluate on the ticks that came since, and conclude."""
        assert trained.version is not None
        evaluate.evaluate(self.settings, self.spec, trained.version, wait_s=0)
        return cycle.conclude(self.settings, self.spec, trained, trained.version)

    @property
    def champion(self) -> str:
        champion = self.store.champion()
        assert champion is not None
        return champion.version

    def recorded(self) -> Cycle:
        return cycle.records(self.settings, self.spec)[-1]


def opened(root: Path) -> Line:
    settings = load_settings(
        {
            "HEADRACE_HOME": str(root / "home"),
            "HEADRACE_LINES_DIR": str(root / "lines"),
            "HEADRACE_FEATURE_REPO": str(PROJECT / "feature_repo"),
        }
    )
    return Line(settings, find_line(settings, "tiny"))


def bootstrap(root: Path) -> None:
    """Write a home whose first champion came from a full training through Feast."""
    from headrace.store import Store

    (root / "lines").mkdir()
    (root / "lines" / "tiny.yaml").write_text(LINE, encoding="utf-8")
    line = opened(root)
    Store(line.settings).apply()
    line.tick(40)
    ended = cycle.run(line.settings, line.spec, "full", wait_s=0)
    assert (ended.outcome, ended.reasons) == ("promoted", ())


def correct_five(line: Line, tick: int) -> None:
    """The next tick corrects five negatives of that one."""
    first = read_samples(line.spec, line.home, tick, tick + 1)
    negatives = first.filter(pa.compute.equal(first["label"], 0)).slice(0, 5)
    columns: dict[str, Any] = {name: negatives[name] for name in negatives.column_names} | {
        "revision": np.ones(5, np.int32),
        "label": np.ones(5, np.int8),
        "positive_weight": np.ones(5, np.float32),
        "negative_weight": np.full(5, -1, np.float32),
    }
    head = head_tick(line.home)
    stop = read_tick(line.home, head - 1).events[1]
    line.commit(head, columns, (stop, stop))
